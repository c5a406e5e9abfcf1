// The host's side of attention: where lengths and scratch lie on the device, and which kernels take the job.
#include "cuda/attention/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <initializer_list>
#include <string>
#include <vector>

#include "cuda/attention/arguments.h"
#include "cuda/attention/plain.h"
#include "cuda/attention/shapes.h"
#include "cuda/attention/tensor_cores.h"
#include "cuda/launch.h"
#include "cuda/memory.h"
#include "cuda/values.h"

namespace fusestep::cuda {
namespace {

enum class Path { plain, sm80, sm90 };

// FUSESTEP_CUDA_ATTENTION asks for another path than the device's own: to compare them.
Path path_of(DType dtype) {
  if (size_of(dtype) != 2) throw std::invalid_argument("attention: query: expected float16 or bfloat16 on CUDA");
  int device = 0;
  int major = 0;
  check(cudaGetDevice(&device), "asking for the current device");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for the capability");
  const char* wanted = std::getenv("FUSESTEP_CUDA_ATTENTION");
  if (wanted == nullptr || *wanted == '\0') return major == 9 ? Path::sm90 : Path::sm80;
  const std::string name = wanted;
  if (name == "plain") return Path::plain;
  if (name == "sm_80") return Path::sm80;
  if (name == "sm_90a") return Path::sm90;
  throw std::invalid_argument("FUSESTEP_CUDA_ATTENTION: expected plain, sm_80 or sm_90a, got " + name + ".");
}

// Pieces of the session's scratch memory: asked for one by one, then allocated together.
class Scratch {
 public:
  // The piece's place, known once all have been asked for.
  std::size_t add(std::size_t bytes) {
    const std::size_t begin = bytes_;
    bytes_ += (bytes + 255) / 256 * 256;
    return begin;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_ = 0;
};

std::int64_t tiles_in(std::int64_t rows, std::int64_t size) { return (rows + size - 1) / size; }

Tiles make_tiles(const AttentionLayout& layout, std::int64_t rows, std::int64_t size) {
  const std::int64_t per_sequence = tiles_in(rows, size);
  // Each packed sequence may end with a tile that is not full.
  const std::int64_t bound = layout.packed ? rows / size + layout.count() : per_sequence * layout.batch;
  return {size, per_sequence, nullptr, bound};
}

struct CountTilesArguments {
  AttentionLayout layout;
  std::int64_t size[2];    // of tiles of queries and of keys
  std::int64_t* before[2];  // [sequences + 1]
};

constexpr int kCountThreads = 256;

// One block for queries, one for keys: how many tiles come before each packed sequence.
__global__ void __launch_bounds__(kCountThreads, 1)
    count_tiles(const __grid_constant__ CountTilesArguments arguments) {
  __shared__ std::int64_t sums[kCountThreads];
  const AttentionLayout& layout = arguments.layout;
  const bool keys = blockIdx.x == 1;
  const std::int64_t size = arguments.size[blockIdx.x];
  const std::int64_t each = (layout.count() + kCountThreads - 1) / kCountThreads;
  const std::int64_t begin = threadIdx.x * each;
  const std::int64_t end = begin + each < layout.count() ? begin + each : layout.count();
  const auto tiles_of = [&](std::int64_t n) {
    const AttentionSequence sequence = layout.sequence(n);
    return ((keys ? sequence.keys : sequence.queries) + size - 1) / size;
  };
  std::int64_t sum = 0;
  for (std::int64_t n = begin; n < end; ++n) sum += tiles_of(n);
  sums[threadIdx.x] = sum;
  __syncthreads();
  std::int64_t before = 0;
  for (unsigned t = 0; t < threadIdx.x; ++t) before += sums[t];
  for (std::int64_t n = begin; n < end; ++n) {
    arguments.before[blockIdx.x][n] = before;
    before += tiles_of(n);
  }
  if (end == layout.count() && begin < end) arguments.before[blockIdx.x][end] = before;
}

// The layout with its arrays on the device: those that the host knows are uploaded.
AttentionLayout on_device(Session& session, const AttentionJob& job) {
  AttentionLayout layout = job.layout;
  if (job.sequences == nullptr) return layout;
  const auto upload = [&](IntegerArray& array, std::int64_t count) {
    if (array.data == nullptr) return;
    std::vector<std::int64_t> values(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) values[static_cast<std::size_t>(i)] = array[i];
    Bytes table;
    append(table, values.data(), values.size());
    array = {session.table(table), 1, DType::int64};
  };
  upload(layout.key_lengths, layout.batch);
  upload(layout.cu_seqlens_q, layout.batch + 1);
  upload(layout.cu_seqlens_k, layout.batch + 1);
  return layout;
}

// Calls run<S, depth>() for the storage type of the dtype and the depth that both head dims fit in.
template <class Run>
void with_shape(const AttentionJob& job, const Run& run) {
  const std::int64_t dim = std::max(job.head_dim, job.value_dim);
  const auto with_depth = [&]<class S>(S) {
    if (dim <= 64) return run.template operator()<S, 64>();
    if (dim <= 128) return run.template operator()<S, 128>();
    return run.template operator()<S, 256>();
  };
  return job.dtype == DType::float16 ? with_depth(Float16{}) : with_depth(BFloat16{});
}

void count_packed_tiles(Session& session, AttentionArguments& arguments, std::int64_t* before) {
  const std::int64_t count = arguments.job.layout.count() + 1;
  arguments.query_tiles.before = before;
  arguments.key_tiles.before = before + count;
  const CountTilesArguments counting{
      arguments.job.layout, {arguments.query_tiles.size, arguments.key_tiles.size}, {before, before + count}};
  launch("count_tiles", count_tiles, 2, kCountThreads, session.stream(), counting);
}

}  // namespace

void run_attention_forward(const AttentionJob& job, const Stream& stream) {
  if (job.heads == 0 || job.layout.queries == 0 || job.layout.count() == 0) return;
  Session session(stream);
  AttentionArguments arguments{};
  arguments.job = job;
  arguments.job.layout = on_device(session, job);
  const auto run = [&](std::int64_t query_tile, std::int64_t key_tile, const auto& kernels) {
    arguments.query_tiles = make_tiles(job.layout, job.layout.queries, query_tile);
    arguments.key_tiles = make_tiles(job.layout, job.layout.keys, key_tile);
    if (job.layout.packed) {
      Scratch scratch;
      scratch.add(2 * static_cast<std::size_t>(job.layout.count() + 1) * sizeof(std::int64_t));
      count_packed_tiles(session, arguments, reinterpret_cast<std::int64_t*>(session.scratch(scratch.bytes())));
    }
    kernels();
  };
  const Path path = path_of(job.dtype);
  with_shape(job, [&]<class S, int kDepth>() {
    if (path == Path::sm90) {
      using Shape = ForwardShape<Sm90, kDepth>;
      run(Shape::kQueries, Shape::kKeys, [&] { run_forward<Sm90, S, kDepth>(session, arguments); });
    } else {
      using Shape = ForwardShape<Sm80, kDepth>;
      run(Shape::kQueries, Shape::kKeys, [&] { run_forward<Sm80, S, kDepth>(session, arguments); });
    }
  });
  session.finish();
}

namespace {

constexpr int kDeltaRows = 4;  // of a block of threads: a warp each

template <class S>
__device__ __forceinline__ typename Wide<S>::type element_of(const HeadTensor& tensor, std::int64_t at) {
  return widened<typename Wide<S>::type>(static_cast<const S*>(tensor.data)[at]);
}

// delta of each query: sum(grad_out * out). And zeros as the gradient of queries that no key tile is for.
template <class S>
__global__ void __launch_bounds__(32 * kDeltaRows, 1) attention_delta(const __grid_constant__ AttentionArguments arguments) {
  using T = typename Wide<S>::type;
  const AttentionJob& job = arguments.job;
  const std::int64_t number = static_cast<std::int64_t>(blockIdx.x) * kDeltaRows + threadIdx.x / 32;
  const std::int64_t rows = job.layout.packed ? job.layout.queries : job.layout.batch * job.layout.queries;
  if (number >= rows * job.heads) return;  // the whole warp
  const std::int64_t row = number % job.layout.queries;
  const std::int64_t head = number / job.layout.queries % job.heads;
  const std::int64_t batch = number / job.layout.queries / job.heads;
  const std::int64_t out_at = job.out.offset(batch, head) + row * job.out.row;
  const HeadTensor& grad_out = arguments.grads.grad_out;
  const std::int64_t grad_at = grad_out.offset(batch, head) + row * grad_out.row;
  T sum = 0;
  for (std::int64_t i = threadIdx.x % 32; i < job.value_dim; i += 32) {
    sum = fma(element_of<S>(grad_out, grad_at + i * grad_out.column), element_of<S>(job.out, out_at + i * job.out.column), sum);
  }
  for (int half = 16; half > 0; half /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, half);
  if (threadIdx.x % 32 == 0) static_cast<T*>(arguments.delta)[number] = sum;
  const T lse = static_cast<const T*>(job.lse.data)[job.lse.offset(batch, head) + row * job.lse.row];
  const HeadTensor& grad_query = arguments.grads.grad_query;
  if (lse != static_cast<T>(-INFINITY) || grad_query.data == nullptr) return;
  for (std::int64_t i = threadIdx.x % 32; i < job.head_dim; i += 32) {
    static_cast<S*>(grad_query.data)[grad_query.offset(batch, head) + row * grad_query.row + i * grad_query.column] = S{};
  }
}

std::int64_t multiprocessors() {
  int device = 0;
  int count = 0;
  check(cudaGetDevice(&device), "asking for the current device");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "asking for the multiprocessors");
  return count;
}

template <class Machine, class S, int kDepth>
void run_tensor_backward(Session& session, AttentionArguments arguments) {
  using Shape = BackwardShape<Machine, kDepth>;
  const AttentionJob& job = arguments.job;
  const AttentionLayout& layout = job.layout;
  arguments.query_tiles = make_tiles(layout, layout.queries, Shape::kQueries);
  arguments.key_tiles = make_tiles(layout, layout.keys, Shape::kKeys);
  const std::int64_t heads_of_unit = job.heads / job.kv_heads;
  const std::int64_t units = job.kv_heads * Shape::kParts * (layout.packed ? 1 : layout.batch);
  QuerySums& sums = arguments.query_sums;
  sums.resident = multiprocessors();
  sums.tiles = heads_of_unit * (layout.packed ? arguments.query_tiles.bound : arguments.query_tiles.per_sequence);
  const std::int64_t key_tiles = layout.packed ? arguments.key_tiles.bound : arguments.key_tiles.per_sequence;
  // As many units as can be under way, and one that ends while the next begins. With one key tile a unit adds nothing up.
  sums.slots = key_tiles == 1 ? 1 : std::min(units, sums.resident / std::max<std::int64_t>(key_tiles, 1) + 2);
  Scratch scratch;
  const std::size_t turns = scratch.add(static_cast<std::size_t>(1 + units * sums.tiles * Shape::kGroups) * sizeof(std::uint32_t));
  const std::size_t before = scratch.add(layout.packed ? 2 * static_cast<std::size_t>(layout.count() + 1) * sizeof(std::int64_t) : 0);
  const std::size_t rows = static_cast<std::size_t>(job.heads * layout.queries * (layout.packed ? 1 : layout.batch));
  const std::size_t delta = scratch.add(rows * sizeof(float));
  const std::size_t sum_bytes = key_tiles == 1 ? 0
                                               : static_cast<std::size_t>(sums.slots * sums.tiles) * Shape::kQueries *
                                                     Shape::kColumns * sizeof(float);
  const std::size_t of_sums = scratch.add(sum_bytes);
  unsigned char* const memory = session.scratch(scratch.bytes());
  check(cudaMemsetAsync(memory + turns, 0, before - turns, session.stream()), "clearing its scratch");
  sums.ticket = reinterpret_cast<std::uint32_t*>(memory + turns);
  sums.turns = sums.ticket + 1;
  sums.sums = reinterpret_cast<float*>(memory + of_sums);
  arguments.delta = memory + delta;
  if (layout.packed) count_packed_tiles(session, arguments, reinterpret_cast<std::int64_t*>(memory + before));
  launch("attention_delta", attention_delta<S>, static_cast<std::int64_t>((rows + kDeltaRows - 1) / kDeltaRows), 32 * kDeltaRows,
         session.stream(), arguments);
  run_backward<Machine, S, kDepth>(session, arguments);
}

}  // namespace

void run_attention_backward(const AttentionJob& job, const AttentionGrads& grads, const Stream& stream) {
  if (job.heads == 0 || job.layout.count() == 0) return;
  Session session(stream);
  AttentionArguments arguments{};
  arguments.job = job;
  arguments.grads = grads;
  arguments.job.layout = on_device(session, job);
  const Path path = path_of(job.dtype);
  with_shape(job, [&]<class S, int kDepth>() {
    if (path == Path::sm90) {
      run_tensor_backward<Sm90, S, kDepth>(session, arguments);
    } else {
      if constexpr (kDepth <= 128) run_tensor_backward<Sm80, S, kDepth>(session, arguments);
    }
  });
  session.finish();
}

}  // namespace fusestep::cuda
