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

// The least work that moves an optimizer's memory: lists[k][i] is array k of tensor i, all float32 and contiguous; the
// arrays of the first lists are written in place, those of the last one only read. The work is shared out as the
// optimizers' is: with one half of the arrays for each thread it was up to a fifth slower, no floor at all.
void stream_floor(const py::list& lists) {
  const int num_arrays = static_cast<int>(lists.size());
  TensorReader reader;
  std::vector<std::vector<float*>> tensors;  // [tensor][array]
  std::vector<std::int64_t> ends;            // [tensor]: where it ends on the line of all elements
  const Argument argument{"stream_floor", "lists"};
  if (num_arrays < 1 || num_arrays > 4) refuse_value(argument, "1 to 4 lists", std::to_string(num_arrays));
  for (int k = 0; k < num_arrays; ++k) {
    const ItemList items(lists[static_cast<std::size_t>(k)], argument);
    tensors.resize(items.size());
    for (std::size_t i = 0; i < items.size(); ++i) {
      const TensorView view = reader.read(items[i], argument);
      if (view.dtype != DType::float32 || !is_contiguous(view)) refuse_value(argument, "contiguous float32", "another");
      if (k < num_arrays - 1) check_writable(view, argument);
      tensors[i].push_back(static_cast<float*>(view.data));
      if (k == 0) ends.push_back((ends.empty() ? 0 : ends.back()) + view.numel);
    }
  }
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
      cpu_kernels().stream(tensors[i].data(), num_arrays, num_arrays - 1, first, last);
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
  m.def("stream_floor", &stream_floor, py::arg("lists"));
}

}  // namespace fusestep
