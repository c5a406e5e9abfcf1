// fusestep._core: the products of bfloat16 that attention on CPUs is made of, one at a time. For tests: an instruction
// against its twin.
#include "cpu/bf16_products.h"

#include <string>

#include "bindings/functions.h"
#include "bindings/tensor.h"
#include "tensors/check_view.h"
#include "tensors/view_layout.h"

namespace fusestep {

namespace {

Bf16Attention kernels_of(const std::string& level, const Argument& argument) {
  const std::optional<Bf16Attention> kernels = bf16_attention_of(level);
  if (!kernels) refuse_value(argument, "a level with products of bfloat16 that this CPU has", level);
  return *kernels;
}

bool has_bf16_products(const std::string& level) { return bf16_attention_of(level).has_value(); }

// A contiguous array in CPU memory with this many elements.
template <class T>
T* elements(TensorReader& reader, py::handle array, DType dtype, std::int64_t count, const Argument& argument) {
  const TensorView view = reader.read(array, argument);
  if (view.dtype != dtype || view.numel != count || !is_contiguous(view) || view.device.type != kDeviceCpu) {
    refuse_value(argument, std::to_string(count) + " contiguous elements of " + name_of(dtype), describe_shape(view));
  }
  return static_cast<T*>(view.data);
}

// c (32, 32) = or += a (32, 32 * steps) . b, which is (steps, 2, 16, 16, 2): [half][pair of rows][column].
void bf16_multiply(const std::string& level, py::handle a, py::handle b, py::handle c, std::int64_t steps, bool adds) {
  const char* const name = "bf16_multiply";
  const Bf16Attention kernels = kernels_of(level, {name, "level"});
  TensorReader reader;
  constexpr std::int64_t kTile = 512;
  const TileBlock block{
      .a = elements<BFloat16>(reader, a, DType::bfloat16, kTileBlock * kTileBlock * steps, {name, "a"}),
      .a_row = kTileBlock * steps,
      .a_step = kTileBlock,
      .b = elements<BFloat16>(reader, b, DType::bfloat16, 2 * kTile * steps, {name, "b"}),
      .b_step = 2 * kTile,
      .b_column = kTile,
      .c = elements<float>(reader, c, DType::float32, kTileBlock * kTileBlock, {name, "c"}),
      .c_row = kTileBlock,
      .steps = steps,
      .adds = adds};
  kernels.multiply(block);
}

// row (32): even, rounded. pairs (16, 2): the first 16 of even and of odd, rounded.
void bf16_narrow(const std::string& level, py::handle even, py::handle odd, py::handle row, py::handle pairs) {
  const char* const name = "bf16_narrow";
  const Bf16Attention kernels = kernels_of(level, {name, "level"});
  TensorReader reader;
  kernels.narrow(elements<float>(reader, even, DType::float32, 32, {name, "even"}),
                 elements<float>(reader, odd, DType::float32, 32, {name, "odd"}),
                 elements<BFloat16>(reader, row, DType::bfloat16, 32, {name, "row"}),
                 elements<BFloat16>(reader, pairs, DType::bfloat16, 32, {name, "pairs"}));
}

}  // namespace

void bind_bf16_products(py::module_& m) {
  m.def("has_bf16_products", &has_bf16_products, py::arg("level"));
  m.def("bf16_multiply", &bf16_multiply, py::arg("level"), py::arg("a"), py::arg("b"), py::arg("c"), py::arg("steps"),
        py::arg("adds"));
  m.def("bf16_narrow", &bf16_narrow, py::arg("level"), py::arg("even"), py::arg("odd"), py::arg("row"),
        py::arg("pairs"));
}

}  // namespace fusestep
