// fusestep._core: what `fusestep bench` measures against. Not for anything else.
#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "bindings/functions.h"
#include "bindings/lists.h"
#include "bindings/tensor.h"
#include "cpu/kernel_table.h"
#include "cpu/slices.h"
#include "jobs/slices.h"
#include "tensors/check_view.h"
#include "tensors/view_layout.h"
#include "threads/threads.h"

namespace fusestep {

namespace {

// Reads every array of a list as the optimizers do, and does nothing with it.
std::size_t read_tensors(py::handle arrays) {
  TensorReader reader;
  const ItemList items(arrays, {"read_tensors", "arrays"});
  std::int64_t numel = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    numel += reader.read(items[i], {"read_tensors", "arrays", static_cast<std::int64_t>(i)}).numel;
  }
  return items.size();
}

// The least work that moves an operation's memory. Each of the three is a list of lists of arrays: [k][i] is array k of
// tensor i, all of a tensor contiguous and with the same number of elements, of floats or uint8. Those updated keep
// their values; those written become zeros. The work is shared out as the optimizers' is: with one half of the arrays
// for each thread it was up to a fifth slower, no floor at all.
void stream_floor(const py::list& updated, const py::list& read, const py::list& written) {
  TensorReader reader;
  std::vector<std::vector<StreamArray>> tensors;  // [tensor][array]
  std::vector<std::int64_t> ends;                 // [tensor]: where it ends on the line of all elements
  const auto add = [&](const py::list& lists, StreamAccess access, const char* name) {
    const Argument argument{"stream_floor", name};
    for (const py::handle list : lists) {
      const ItemList items(list, argument);
      const bool first = tensors.empty();
      if (first) tensors.resize(items.size());
      if (items.size() != tensors.size()) {
        refuse_value(argument, std::to_string(tensors.size()) + " arrays in each list", std::to_string(items.size()));
      }
      for (std::size_t i = 0; i < items.size(); ++i) {
        const TensorView view = reader.read(items[i], argument, Dtypes::floats_and_codes);
        if (!is_contiguous(view)) refuse_value(argument, "contiguous arrays", "a strided one");
        if (access != StreamAccess::read) check_writable(view, argument);
        const std::int64_t begin = i == 0 ? 0 : ends[i - 1];
        if (first) ends.push_back(begin + view.numel);
        if (ends[i] - begin != view.numel) {
          refuse_value(argument, std::to_string(ends[i] - begin) + " elements, as the first array of its tensor",
                       std::to_string(view.numel));
        }
        tensors[i].push_back({static_cast<unsigned char*>(view.data), size_of(view.dtype), access});
      }
    }
  };
  add(updated, StreamAccess::update, "updated");
  add(read, StreamAccess::read, "read");
  add(written, StreamAccess::write, "written");
  const std::int64_t total = ends.empty() ? 0 : ends.back();
  const py::gil_scoped_release released;
  for_each_slice(total, [&](std::int64_t slice) {
    const std::int64_t from = slice * kSliceElements;
    const std::int64_t to = std::min(total, from + kSliceElements);
    auto i = static_cast<std::size_t>(std::upper_bound(ends.begin(), ends.end(), from) - ends.begin());
    for (; i < tensors.size() && (i == 0 || ends[i - 1] < to); ++i) {
      const std::int64_t begin = i == 0 ? 0 : ends[i - 1];
      const std::int64_t first = std::max(from, begin) - begin;
      const std::int64_t last = std::min(to, ends[i]) - begin;
      cpu_kernels().stream(tensors[i].data(), static_cast<int>(tensors[i].size()), first, last);
    }
  });
}

// As many multiply-adds as the threads can do, in registers; returns the floating-point operations that they were. The
// pieces are short, so that a thread that the system holds up leaves its own to the others.
std::int64_t fma_peak(std::int64_t pieces) {
  constexpr std::int64_t kIterations = 4096;
  if (pieces < 1) refuse_value({"fma_peak", "pieces"}, "at least 1", std::to_string(pieces));
  std::vector<std::int64_t> operations(static_cast<std::size_t>(pieces));
  const py::gil_scoped_release released;
  parallel_for(pieces,
               [&](std::int64_t i) { operations[static_cast<std::size_t>(i)] = cpu_kernels().fma_peak(kIterations); });
  return std::accumulate(operations.begin(), operations.end(), std::int64_t{0});
}

}  // namespace

void bind_measures(py::module_& m) {
  m.def("read_tensors", &read_tensors, py::arg("arrays"));
  m.def("fma_peak", &fma_peak, py::arg("pieces"));
  m.def("stream_floor", &stream_floor, py::arg("updated"), py::arg("read") = py::list(),
        py::arg("written") = py::list());
}

}  // namespace fusestep
