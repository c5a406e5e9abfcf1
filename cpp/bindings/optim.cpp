// fusestep._core: optimizer steps.
#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "backend/dispatch.h"
#include "bindings/clipping.h"
#include "bindings/functions.h"
#include "bindings/lists.h"
#include "bindings/options.h"
#include "bindings/tensor.h"
#include "math/optim/all.h"
#include "operations/step.h"

namespace fusestep {

namespace {

// The number of each parameter's step, and the tensor that counts it if there is one: `steps` is one int for all, a
// list of ints, or a list of tensors that hold the count before this step.
class Steps {
 public:
  Steps(py::handle steps, std::size_t count, bool deferred, const char* operation, std::int64_t group)
      : operation_(operation), group_(group), deferred_(deferred) {
    if (PyLong_Check(steps.ptr())) {
      common_ = read_step(steps, -1);
    } else {
      list_ = ItemList(steps, {operation, "step", -1, group});
      list_.check_length(count, {operation, "step", -1, group});
    }
  }

  void read(std::size_t index, TensorReader& reader, StepTensor& tensor) const {
    if (list_.size() == 0) {
      tensor.step = common_;
      return;
    }
    const auto i = static_cast<std::int64_t>(index);
    if (PyLong_Check(list_[index].ptr())) {
      tensor.step = read_step(list_[index], i);
      return;
    }
    const Argument argument{operation_, "step", i, group_};
    const TensorView view = reader.read(list_[index], argument);
    if (view.ndim != 0 || (view.device.type != kDeviceCpu && !deferred_)) {
      refuse_value(argument, "a 0-dim tensor in CPU memory, as torch.optim keeps", "another tensor",
                   "One on the device needs capturable=True.");
    }
    if (view.dtype != DType::float32 && view.dtype != DType::float64) {
      refuse_type(argument, "float32 or float64", name_of(view.dtype));
    }
    tensor.step_count = view;
    if (deferred_) return;  // the device reads it
    const double count =
        view.dtype == DType::float32 ? *static_cast<const float*>(view.data) : *static_cast<const double*>(view.data);
    if (!(count >= 0 && count < kMostSteps)) {
      refuse_value(argument, "a count from 0 to 2**53 - 1", std::to_string(count));
    }
    tensor.step = count + 1;
  }

 private:
  double read_step(py::handle value, std::int64_t index) const {
    const long long step = PyLong_AsLongLong(value.ptr());
    if (step >= 1 && step <= static_cast<long long>(kMostSteps)) return static_cast<double>(step);
    PyErr_Clear();  // of a number beyond 64 bits
    refuse_value({operation_, "step", index, group_}, "the number of this step, an int from 1 to 2**53",
                 text_of(value));
  }

  static constexpr double kMostSteps = 0x1p53;  // a double counts no further

  const char* operation_;
  std::int64_t group_;
  bool deferred_;
  double common_ = 1;
  ItemList list_;
};

// The options "rounding", "master_weights" and "seed" of a group.
GroupRounding read_rounding(const py::dict& options, const char* operation, std::int64_t group) {
  const auto option = [&](const char* name) -> py::object {
    PyObject* value = PyDict_GetItemString(options.ptr(), name);
    if (value == nullptr) return py::none();
    return py::reinterpret_borrow<py::object>(value);
  };
  GroupRounding rounding;
  const py::object word = option("rounding");
  const py::object master = option("master_weights");
  const Argument argument{operation, "rounding", -1, group};
  if (!master.is_none() && read_bool(master, {operation, "master_weights", -1, group})) {
    if (!word.is_none()) {
      refuse_value(argument, "None with master_weights=True", text_of(word),
                   "The float32 copy needs no other rounding than to the nearest.");
    }
    rounding.rounding = Rounding::master;
  } else if (!word.is_none()) {
    const std::string given = word_of(word);
    if (given != "stochastic" && given != "kahan") {
      refuse_value(argument, "None, \"stochastic\" or \"kahan\"", text_of(word),
                   did_you_mean(word, {"stochastic", "kahan"}));
    }
    rounding.rounding = given == "kahan" ? Rounding::kahan : Rounding::stochastic;
  }
  if (rounding.rounding == Rounding::stochastic) {
    rounding.seed = read_unsigned(option("seed"), UINT64_MAX, {operation, "seed", -1, group});
  }
  return rounding;
}

// What stochastic rounding counts by: the number of the parameter among all of the optimizer, or, of a shard, (number,
// first, run, pitch) as in ShardPositions.
void read_number(py::handle number, StepTensor& tensor) {
  if (PyLong_Check(number.ptr())) {
    tensor.number = py::cast<std::uint32_t>(number);
    return;
  }
  std::tie(tensor.number, tensor.positions.first, tensor.positions.run, tensor.positions.pitch) =
      py::cast<std::tuple<std::uint32_t, std::int64_t, std::int64_t, std::int64_t>>(number);
}

// What the scales of a state in 8 bits are called: "exp_avgs_absmax".
template <class O>
const char* absmax_name(int state) {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const char* name : O::kStateNames) all.push_back(std::string(name != nullptr ? name : "") + "_absmax");
    return all;
  }();
  return names[static_cast<std::size_t>(state)].c_str();
}

// One group: (options, params, grads, states, steps, companions, numbers). `states`: a list for each state, and then,
// where any of them are of uint8, one for the scales of each. `companions`: compensations or float32 copies, where the
// rounding has them. `numbers`: see read_number; None: 0, 1, ...
template <class O>
void add_group(StepPlan& plan, TensorReader& reader, const py::tuple& group, const typename O::Options& options,
               const GroupRounding& rounding, bool deferred, const char* operation, std::int64_t group_index) {
  const auto list_argument = [&](const char* name) { return Argument{operation, name, -1, group_index}; };
  const ItemList params(group[1], list_argument("params"));
  const ItemList grads(group[2], list_argument("grads"));
  grads.check_length(params.size(), list_argument("grads"));

  const StateSet used = StepPlan::states_of<O>(options);
  const auto given_states = py::reinterpret_borrow<py::tuple>(group[3]);
  const auto num_states = static_cast<std::size_t>(
      std::count_if(O::kStateNames, O::kStateNames + kMaxStates, [](const char* name) { return name != nullptr; }));
  ItemList states[kMaxStates];
  ItemList absmax[kMaxStates];
  for (int k = 0; k < kMaxStates; ++k) {
    if (O::kStateNames[k] == nullptr) continue;
    const Argument argument = list_argument(O::kStateNames[k]);
    const py::object given = given_states[static_cast<std::size_t>(k)];
    const std::size_t scales_at = num_states + static_cast<std::size_t>(k);
    const py::object scales = scales_at < given_states.size() ? py::object(given_states[scales_at]) : py::none();
    const Argument scales_argument = list_argument(absmax_name<O>(k));
    if (!uses(used, k)) {  // left alone, but refused where they are no lists
      if (!given.is_none()) ItemList(given, argument);
      if (!scales.is_none()) ItemList(scales, scales_argument);
      continue;
    }
    states[k] = ItemList(given, argument);
    states[k].check_length(params.size(), argument);
    if (scales.is_none()) continue;
    absmax[k] = ItemList(scales, scales_argument);
    absmax[k].check_length(params.size(), scales_argument);
  }
  const Steps steps(group[4], params.size(), deferred, operation, group_index);
  const bool kahan = rounding.rounding == Rounding::kahan;
  const char* const companion_name = kahan ? "compensations" : "master_params";
  ItemList companions;
  if (kahan || rounding.rounding == Rounding::master) {
    companions = ItemList(group[5], list_argument(companion_name));
    companions.check_length(params.size(), list_argument(companion_name));
  }

  plan.reserve(params.size());
  for (std::size_t i = 0; i < params.size(); ++i) {
    const auto index = static_cast<std::int64_t>(i);
    StepTensor tensor;
    tensor.param = reader.read(params[i], {operation, "params", index, group_index});
    tensor.grad = reader.read(grads[i], {operation, "grads", index, group_index});
    for (int k = 0; k < kMaxStates; ++k) {
      if (!uses(used, k)) continue;
      const Argument argument{operation, O::kStateNames[k], index, group_index};
      tensor.states[k] = reader.read(states[k][i], argument, Dtypes::floats_and_codes);
      if (tensor.states[k].dtype != DType::uint8) continue;
      const Argument absmax_argument{operation, absmax_name<O>(k), index, group_index};
      if (absmax[k].size() == 0) refuse_type(absmax_argument, "arrays beside states of uint8", "None");
      tensor.absmax[k] = reader.read(absmax[k][i], absmax_argument);
    }
    if (companions.size() != 0) {
      tensor.companion = reader.read(companions[i], {operation, companion_name, index, group_index});
    }
    tensor.number = static_cast<std::uint32_t>(i);
    if (rounding.rounding == Rounding::stochastic && !group[6].is_none()) {
      read_number(py::reinterpret_borrow<py::sequence>(group[6])[i], tensor);
    }
    steps.read(i, reader, tensor);
    plan.add<O>(options, rounding, tensor, group_index, index);
  }
}

// The scalars of a deferred step: {"grad_scale", "found_inf", "norm", "skipped"}, each a tensor on the device or None.
DeferredStep read_deferred(const py::dict& given, TensorReader& reader, const char* operation) {
  const auto read = [&](const char* name) {
    PyObject* value = PyDict_GetItemString(given.ptr(), name);
    return value == nullptr || value == Py_None ? TensorView{} : reader.read(value, {operation, name});
  };
  DeferredStep deferred{};
  deferred.grad_scale = read("grad_scale");
  deferred.found_inf = read("found_inf");
  deferred.norm = read("norm");
  deferred.skipped = read("skipped");
  return deferred;
}

// The rate of a deferred step may be a tensor on the device, to be read there. It is taken out of `options` then.
TensorView take_lr_on_device(py::dict& options, TensorReader& reader, const Argument& argument) {
  PyObject* value = PyDict_GetItemString(options.ptr(), "lr");
  if (value == nullptr || PyFloat_Check(value) || PyLong_Check(value)) return {};
  const TensorView lr = reader.read(value, argument);
  if (!backend_for(lr.device, argument).defers) return {};  // a number in host memory
  options = options.attr("copy")();
  options.attr("pop")("lr");
  return lr;
}

template <class O>
py::tuple optimizer_step(const char* operation, const py::list& groups, const py::dict& clipping,
                         const std::optional<py::dict>& deferred, py::handle totals) {
  TensorReader reader;
  StepPlan plan(operation, read_clipping(clipping, operation));
  plan.take_totals(read_totals(totals, reader, operation));
  if (deferred) plan.defer<O>(read_deferred(*deferred, reader, operation));
  // The plan knows groups by the address of their options: these stay where they are.
  std::vector<typename O::Options> options;
  std::vector<GroupRounding> roundings;
  options.reserve(groups.size());
  roundings.reserve(groups.size());
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const auto group_index = groups.size() == 1 ? -1 : static_cast<std::int64_t>(g);
    const auto group = py::reinterpret_borrow<py::tuple>(groups[g]);
    auto given = py::reinterpret_borrow<py::dict>(group[0]);
    const TensorView lr =
        deferred ? take_lr_on_device(given, reader, {operation, "lr", -1, group_index}) : TensorView{};
    options.push_back(read_options<O>(given, operation, group_index));
    roundings.push_back(read_rounding(given, operation, group_index));
    if (deferred) plan.defer_group<O>(options.back(), lr);
    add_group<O>(plan, reader, group, options.back(), roundings.back(), deferred.has_value(), operation, group_index);
  }
  plan.check_together();
  const Stream stream = reader.stream_of(plan.device());
  StepResult result;
  {
    const py::gil_scoped_release released;
    result = plan.run(stream);
  }
  return py::make_tuple(result.norm, result.applied);
}

// Calls visit(TypeList<O>{}) for the optimizer of that name.
template <class Visit>
void with_optimizer(const std::string& name, Visit&& visit) {
  bool found = false;
  for_each_type(Optimizers{}, [&]<class O>(TypeList<O> tag) {
    if (name != O::kName) return;
    found = true;
    visit(tag);
  });
  if (!found) throw std::invalid_argument("optimizer: expected one of fusestep._core.optimizers(), got " + name);
}

}  // namespace

void bind_optim(py::module_& m) {
  m.def(
      "optimizers",
      [] {
        py::dict all;
        for_each_type(Optimizers{}, [&]<class O>(TypeList<O>) { all[O::kName] = describe_optimizer<O>(); });
        return all;
      },
      "What each optimizer is called, keeps and takes: {name: {\"states\", \"squares\", \"options\", \"option_docs\", "
      "\"doc\"}}.");

  m.def(
      "check_options",
      [](const std::string& operation, const std::string& name, const py::dict& options) {
        with_optimizer(name, [&]<class O>(TypeList<O>) { read_options<O>(options, operation.c_str(), -1); });
        read_rounding(options, operation.c_str(), -1);
      },
      py::arg("operation"), py::arg("name"), py::arg("options"),
      "Refuses hyperparameters that the optimizer cannot take. Keys that are none of its options are left alone.");

  m.def(
      "check_clipping",
      [](const std::string& operation, const py::dict& clipping) { read_clipping(clipping, operation.c_str()); },
      py::arg("operation"), py::arg("clipping"), "Refuses clipping options that make no sense.");

  m.def(
      "defers",
      [](py::handle array) {
        TensorReader reader;
        const Argument argument{"defers", "array"};
        return backend_for(reader.read(array, argument).device, argument).defers;
      },
      py::arg("array"), "Whether steps can be deferred where this array is.");

  m.def(
      "optimizer_step",
      [](const std::string& operation, const std::string& name, const py::list& groups, const py::dict& clipping,
         const std::optional<py::dict>& deferred, py::handle totals) {
        py::tuple result;
        with_optimizer(name, [&]<class O>(TypeList<O>) {
          result = optimizer_step<O>(operation.c_str(), groups, clipping, deferred, totals);
        });
        return result;
      },
      py::arg("operation"), py::arg("name"), py::arg("groups"), py::arg("clipping"), py::arg("deferred") = py::none(),
      py::arg("totals") = py::none(),
      "One step over all groups, each (options, params, grads, states, steps, companions, numbers). Returns (norm or "
      "None, applied). "
      "`deferred`: the host does not wait and learns nothing; what the device reads and writes instead. "
      "`totals`: as for grad_norm; on the device where the step is deferred.");
}

}  // namespace fusestep
