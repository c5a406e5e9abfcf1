#include "operations/eight_bit.h"

#include <algorithm>
#include <string>

#include "math/eight_bit.h"
#include "tensors/check_view.h"
#include "tensors/overlap.h"
#include "tensors/view_layout.h"

namespace fusestep {

namespace {

void check(const char* operation, const char* name, const TensorView& view, DType dtype, std::int64_t numel,
           bool written) {
  const Argument argument{operation, name};
  if (view.dtype != dtype) refuse_type(argument, name_of(dtype), name_of(view.dtype));
  if (view.device.type != kDeviceCpu) refuse_value(argument, "an array in CPU memory", "one on a device");
  if (view.numel != numel || !is_contiguous(view)) {
    refuse_value(argument, "a C-contiguous array of " + std::to_string(numel) + " elements",
                 "shape " + describe_shape(view));
  }
  if (written) check_writable(view, argument);
}

void check_all(const char* operation, const TensorView& values, const TensorView& codes, const TensorView& absmax,
               bool quantizes) {
  check(operation, "values", values, DType::float32, values.numel, !quantizes);
  check(operation, "codes", codes, DType::uint8, values.numel, quantizes);
  check(operation, "absmax", absmax, DType::float32, moment_blocks(values.numel), quantizes);
}

template <bool kSquare>
float quantize_block(const float* values, std::uint8_t* codes, std::int64_t count) {
  std::uint32_t greatest = 0;
  for (std::int64_t i = 0; i < count; ++i) greatest = max(greatest, bits_of(values[i]) & 0x7fffffffu);
  const float scale = moment_scale(greatest);
  const float inverse = inverse_moment_scale(scale);
  const bool is_nan = inverse != inverse;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t code =
        is_nan ? MomentCode<kSquare>::kGreatest : encode_moment<kSquare>(bits_of(values[i] * inverse) >> 16);
    codes[i] = static_cast<std::uint8_t>(code);
  }
  return scale;
}

template <class Block>
void for_each_block(std::int64_t numel, const Block& block) {
  for (std::int64_t first = 0; first < numel; first += kMomentBlock) {
    block(first, std::min<std::int64_t>(kMomentBlock, numel - first));
  }
}

}  // namespace

void quantize_moments(const char* operation, const TensorView& values, const TensorView& codes,
                      const TensorView& absmax, bool square) {
  check_all(operation, values, codes, absmax, true);
  const auto* from = static_cast<const float*>(values.data);
  auto* to = static_cast<std::uint8_t*>(codes.data);
  auto* scale = static_cast<float*>(absmax.data);
  for_each_block(values.numel, [&](std::int64_t first, std::int64_t count) {
    scale[first / kMomentBlock] =
        (square ? quantize_block<true> : quantize_block<false>)(from + first, to + first, count);
  });
}

void dequantize_moments(const char* operation, const TensorView& values, const TensorView& codes,
                        const TensorView& absmax, bool square) {
  check_all(operation, values, codes, absmax, false);
  const auto* from = static_cast<const std::uint8_t*>(codes.data);
  const auto* scale = static_cast<const float*>(absmax.data);
  auto* to = static_cast<float*>(values.data);
  for_each_block(values.numel, [&](std::int64_t first, std::int64_t count) {
    for (std::int64_t i = first; i < first + count; ++i) {
      const std::uint32_t code = from[i] * 256u;
      const std::uint32_t half = square ? decode_moment<true>(code) : decode_moment<false>(code);
      to[i] = float_of(half << 16) * scale[first / kMomentBlock];
    }
  });
}

}  // namespace fusestep
