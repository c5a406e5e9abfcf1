// The concatenated tensors of a job (cpp/jobs/slices.h) as kernels see them. A table says for each slice which tensor
// its first element belongs to, so that a block finds its elements by one read and a short search.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "backend/backend.h"
#include "cuda/memory.h"
#include "jobs/slices.h"

namespace fusestep::cuda {

// The tensor as it is in the job, but `layout` is a position among the table's layouts: the table moves as a whole.
template <class Tensor>
struct Concatenation {
  const Tensor* tensors;               // [num_tensors], then one more, whose begin is numel
  const StridedLayout* layouts;        // nullptr: there are none
  const std::int32_t* first_of_slice;  // [slices]
  std::int64_t num_tensors;
  std::int64_t numel;
};

struct UpdateTensorOnDevice {
  void* operand[kMaxOperands];
  float* absmax[kMaxStates];
  std::int64_t numel;
  std::int64_t begin;
  std::int64_t coefficients;
  std::int64_t layout;  // -1: flat
  ShardPositions positions;
  std::uint32_t parameter;
  DType dtype[kMaxOperands];
  Rounding rounding;
  std::uint8_t unused[5];  // in place of padding: tables are compared as bytes
};

struct GradTensorOnDevice {
  void* data;
  std::int64_t begin;
  std::int32_t layout;
  DType dtype;
  std::uint8_t unused[3];  // in place of padding
};

inline UpdateTensorOnDevice on_device(const UpdateTensor& tensor, std::int32_t layout) {
  UpdateTensorOnDevice entry{};
  std::copy_n(tensor.operand, kMaxOperands, entry.operand);
  std::copy_n(tensor.dtype, kMaxOperands, entry.dtype);
  std::copy_n(tensor.absmax, kMaxStates, entry.absmax);
  entry.numel = tensor.numel;
  entry.rounding = tensor.rounding;
  entry.parameter = tensor.parameter;
  entry.positions = tensor.positions;
  entry.begin = tensor.begin;
  entry.coefficients = tensor.coefficients;
  entry.layout = layout;
  return entry;
}

inline GradTensorOnDevice on_device(const GradTensor& tensor, std::int32_t layout) {
  GradTensorOnDevice entry{};
  entry.data = tensor.data;
  entry.begin = tensor.begin;
  entry.layout = layout;
  entry.dtype = tensor.dtype;
  return entry;
}

// `tensors` has one more than num_tensors, whose begin is the number of elements of all.
template <class Tensor>
auto concatenate(Session& session, const Tensor* tensors, std::int64_t num_tensors) {
  using Entry = decltype(on_device(*tensors, 0));
  std::vector<Entry> entries;
  std::vector<StridedLayout> layouts;
  entries.reserve(static_cast<std::size_t>(num_tensors) + 1);
  for (std::int64_t t = 0; t <= num_tensors; ++t) {
    const bool strided = t < num_tensors && tensors[t].layout != nullptr;
    entries.push_back(on_device(tensors[t], strided ? static_cast<std::int32_t>(layouts.size()) : -1));
    if (strided) layouts.push_back(*tensors[t].layout);
  }
  const std::int64_t numel = tensors[num_tensors].begin;
  std::vector<std::int32_t> first_of_slice;
  first_of_slice.reserve(static_cast<std::size_t>(slices(numel)));
  std::int32_t tensor = 0;
  for (std::int64_t slice = 0; slice < slices(numel); ++slice) {
    while (tensors[tensor + 1].begin <= slice * kSliceElements) ++tensor;
    first_of_slice.push_back(tensor);
  }

  Bytes table;
  const std::size_t tensors_at = append(table, entries.data(), entries.size());
  const std::size_t layouts_at = append(table, layouts.data(), layouts.size());
  const std::size_t firsts_at = append(table, first_of_slice.data(), first_of_slice.size());
  const void* device = session.table(table);
  return Concatenation<Entry>{at<Entry>(device, tensors_at),
                              layouts.empty() ? nullptr : at<StridedLayout>(device, layouts_at),
                              at<std::int32_t>(device, firsts_at), num_tensors, numel};
}

// Calls piece(tensor, first, last) for each tensor with elements in [begin, end), which lies within one slice; first
// and last count from the tensor's own start.
template <class Tensor, class Piece>
__device__ __forceinline__ void for_each_piece(const Concatenation<Tensor>& elements, std::int64_t begin,
                                               std::int64_t end, const Piece& piece) {
  const std::int64_t slice = begin / kSliceElements;
  std::int64_t low = elements.first_of_slice[slice];
  std::int64_t high =
      (slice + 1) * kSliceElements < elements.numel ? elements.first_of_slice[slice + 1] + 1 : elements.num_tensors;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    (elements.tensors[middle].begin <= begin ? low : high) = middle;
  }
  for (std::int64_t t = low; t < elements.num_tensors && elements.tensors[t].begin < end; ++t) {
    const Tensor& tensor = elements.tensors[t];
    const std::int64_t first = begin > tensor.begin ? begin - tensor.begin : 0;
    const std::int64_t next = elements.tensors[t + 1].begin;
    piece(tensor, first, (end < next ? end : next) - tensor.begin);
  }
}

// Where element `index` of a strided tensor lies.
__device__ __forceinline__ std::int64_t offset_of(const StridedLayout& layout, int operand, std::int64_t index) {
  std::int64_t offset = 0;
  for (int d = layout.ndim - 1; d >= 0; --d) {
    offset += index % layout.shape[d] * layout.strides[operand][d];
    index /= layout.shape[d];
  }
  return offset;
}

// Blocks of elementwise kernels take less than a slice, for lists of few elements to spread over a whole device.
inline constexpr int kChunkElements = 4096;
inline constexpr int kChunkThreads = 256;
static_assert(kSliceElements % kChunkElements == 0);

inline std::int64_t chunks(std::int64_t numel) { return (numel + kChunkElements - 1) / kChunkElements; }

// This block's chunk.
template <class Tensor, class Piece>
__device__ __forceinline__ void for_each_piece_of_chunk(const Concatenation<Tensor>& elements, const Piece& piece) {
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kChunkElements;
  const std::int64_t end = begin + kChunkElements < elements.numel ? begin + kChunkElements : elements.numel;
  for_each_piece(elements, begin, end, piece);
}

// Elements [first, last) of a piece, shared out among the block's threads: whole packs of kPack neighbours where
// `aligned` says that element 0 lies at an address of whole packs, and the ends, or everything, one by one.
template <int kPack, class Packs, class Single>
__device__ __forceinline__ void share_out(bool aligned, std::int64_t first, std::int64_t last, const Packs& pack,
                                          const Single& single) {
  const std::int64_t round_up = (first + kPack - 1) / kPack * kPack;
  const std::int64_t head = aligned && round_up < last ? round_up : last;
  const std::int64_t tail = aligned && last / kPack * kPack > head ? last / kPack * kPack : head;
  for (std::int64_t i = head + threadIdx.x * kPack; i < tail; i += static_cast<std::int64_t>(blockDim.x) * kPack) {
    pack(i);
  }
  const std::int64_t before = head - first;
  for (std::int64_t i = threadIdx.x; i < before + (last - tail); i += blockDim.x) {
    single(i < before ? first + i : tail + (i - before));
  }
}

}  // namespace fusestep::cuda
