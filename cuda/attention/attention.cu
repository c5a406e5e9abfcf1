// The host's side of attention: where lengths and scratch lie on the device, and which kernels take the job.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "cuda/attention/arguments.h"
#include "cuda/attention/attention.h"
#include "cuda/attention/plain.h"
#include "cuda/attention/shapes.h"
#include "cuda/attention/tensor_cores.h"
#include "cuda/launch.h"
#include "cuda/memory.h"
#include "cuda/values.h"
#include "jobs/dropout.h"
#include "tensors/check.h"

namespace fusestep::cuda {
namespace {

enum class Path { plain, sm80, sm90 };

// Kernels count the rows of a sequence in 32 bits, a tile beyond the last one included.
void check_lengths(const AttentionJob& job) {
  constexpr std::int64_t kMost = INT32_MAX - 256;
  const auto check_rows = [](const char* argument, std::int64_t rows) {
    if (rows > kMost) {
      refuse_value({"attention", argument}, "at most " + std::to_string(kMost) + " rows on CUDA", std::to_string(rows));
    }
  };
  check_rows("query", job.layout.queries);
  check_rows("key", job.layout.keys);
}

// FUSESTEP_CUDA_ATTENTION asks for another path than the device's own: to compare them.
Path path_of(DType dtype) {
  if (size_of(dtype) != 2) return Path::plain;
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
  refuse_value({"attention", "FUSESTEP_CUDA_ATTENTION"}, "plain, sm_80 or sm_90a", name);
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
  std::int64_t size[2];     // of tiles of queries and of keys
  std::int64_t* before[2];  // [sequences + 1]
};

constexpr int kCountThreads = 256;

// One block for queries, one for keys: how many tiles come before each packed sequence.
__global__ void __launch_bounds__(kCountThreads, 1) count_tiles(const __grid_constant__ CountTilesArguments arguments) {
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

// Calls run<S, depth>() for a 16-bit dtype and the depth that both head dims fit in.
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
  check_lengths(job);
  Session session(stream);
  AttentionArguments arguments{};
  arguments.job = job;
  arguments.job.layout = on_device(session, job);
  const auto make_all_tiles = [&](std::int64_t query_tile, std::int64_t key_tile) {
    arguments.query_tiles = make_tiles(job.layout, job.layout.queries, query_tile);
    arguments.key_tiles = make_tiles(job.layout, job.layout.keys, key_tile);
    if (!job.layout.packed) return;
    const auto bytes = 2 * static_cast<std::size_t>(job.layout.count() + 1) * sizeof(std::int64_t);
    count_packed_tiles(session, arguments, reinterpret_cast<std::int64_t*>(session.scratch(bytes)));
  };
  const Path path = path_of(job.dtype);
  if (path == Path::plain) {
    make_all_tiles(kPlainTile, kPlainTile);
    with_element_type(job.dtype, [&]<class S>(S) { run_plain_forward<S>(session, arguments); });
  } else {
    with_shape(job, [&]<class S, int kDepth>() {
      const auto run_on = [&]<class Machine>(Machine) {
        using Shape = ForwardShape<Machine, kDepth>;
        make_all_tiles(Shape::kQueries, Shape::kKeys);
        run_forward<Machine, S, kDepth>(session, arguments);
      };
      path == Path::sm90 ? run_on(Sm90{}) : run_on(Sm80{});
    });
  }
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
__global__ void __launch_bounds__(32 * kDeltaRows, 1)
    attention_delta(const __grid_constant__ AttentionArguments arguments) {
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
    sum = fma(element_of<S>(grad_out, grad_at + i * grad_out.column),
              element_of<S>(job.out, out_at + i * job.out.column), sum);
  }
  for (int half = 16; half > 0; half /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, half);
  if (threadIdx.x % 32 == 0) static_cast<T*>(arguments.delta)[number] = sum;
  const T lse = static_cast<const T*>(job.lse.data)[job.lse.offset(batch, head) + row * job.lse.row];
  const HeadTensor& grad_query = arguments.grads.grad_query;
  if (lse != static_cast<T>(-INFINITY) || grad_query.data == nullptr) return;
  for (std::int64_t i = threadIdx.x % 32; i < job.head_dim; i += 32) {
    static_cast<S*>(grad_query.data)[grad_query.offset(batch, head) + row * grad_query.row + i * grad_query.column] =
        S{};
  }
}

std::int64_t multiprocessors() {
  int device = 0;
  int count = 0;
  check(cudaGetDevice(&device), "asking for the current device");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "asking for the multiprocessors");
  return count;
}

struct ZeroArguments {
  HeadTensor to;
  DType dtype;
  std::int64_t shape[4];
};

constexpr int kZeroThreads = 256;

__global__ void __launch_bounds__(kZeroThreads, 1) fill_with_zeros(const __grid_constant__ ZeroArguments arguments) {
  const std::int64_t* shape = arguments.shape;
  const std::int64_t number = static_cast<std::int64_t>(blockIdx.x) * kZeroThreads + threadIdx.x;
  if (number >= shape[0] * shape[1] * shape[2] * shape[3]) return;
  const std::int64_t column = number % shape[3];
  const std::int64_t row = number / shape[3] % shape[2];
  const std::int64_t head = number / shape[3] / shape[2] % shape[1];
  const std::int64_t batch = number / shape[3] / shape[2] / shape[1];
  const std::int64_t at = arguments.to.offset(batch, head) + row * arguments.to.row + column * arguments.to.column;
  with_dtype(arguments.dtype, arguments.to.data, [&]<class S>(S* data) { data[at] = S{}; });
}

// One pass over the backward job: what it needs of scratch memory, and its kernels.
class BackwardRun {
 public:
  BackwardRun(Session& session, const AttentionJob& job, const AttentionGrads& grads) : session_(session) {
    arguments_.job = job;
    arguments_.job.layout = on_device(session, job);
    arguments_.grads = grads;
    const std::int64_t rows = layout().queries * (layout().packed ? 1 : layout().batch);
    rows_ = static_cast<std::size_t>(job.heads * rows);
  }

  template <class S>
  void run_plain() {
    set_tiles(kPlainTile, kPlainTile);
    allocate<S>(0, 0);
    run_plain_backward<S>(session_, arguments_);
  }

  template <class Machine, class S, int kDepth>
  void run_on_tensor_cores() {
    using Shape = BackwardShape<Machine, kDepth>;
    set_tiles(Shape::kQueries, Shape::kKeys);
    const AttentionJob& job = arguments_.job;
    const Tiles& queries = arguments_.query_tiles;
    const Tiles& keys = arguments_.key_tiles;
    const bool packed = layout().packed;
    const std::int64_t units = job.kv_heads * Shape::kParts * (packed ? 1 : layout().batch);
    const std::int64_t keys_of_unit = packed ? keys.bound : keys.per_sequence;
    QuerySums& sums = arguments_.query_sums;
    const std::int64_t blocks = multiprocessors();  // at least so many run at once where nothing else does
    // Blocks that wait for each other in a circle need all of them to run. Three more such kernels may run beside.
    sums.resident = blocks / 4;
    sums.tiles = job.heads / job.kv_heads * (packed ? queries.bound : queries.per_sequence);
    // As many units as can be under way, and one that ends while the next begins. With one key tile nothing is summed
    // up.
    const bool adds = keys_of_unit > 1 && arguments_.grads.grad_query.data != nullptr;
    sums.slots = adds ? std::min(units, blocks / keys_of_unit + 2) : 1;
    allocate<S>(1 + units * sums.tiles * Shape::kGroups,
                adds ? sums.slots * sums.tiles * Shape::kQueries * Shape::kColumns : 0);
    run_backward<Machine, S, kDepth>(session_, arguments_);
  }

  template <class S>
  void run_mask() {
    const AttentionGrads& grads = arguments_.grads;
    if (grads.grad_mask_needs_zeros) {
      ZeroArguments zeros{grads.grad_mask, grads.grad_mask_dtype, {}};
      std::copy_n(grads.grad_mask_shape, 4, zeros.shape);
      const std::int64_t elements = zeros.shape[0] * zeros.shape[1] * zeros.shape[2] * zeros.shape[3];
      launch("fill_with_zeros", fill_with_zeros, (elements + kZeroThreads - 1) / kZeroThreads, kZeroThreads,
             session_.stream(), zeros);
    }
    if (layout().count() == 0 || arguments_.job.heads == 0) return;
    set_tiles(kPlainTile, kPlainTile);
    if (arguments_.delta == nullptr) allocate<S>(0, 0);
    run_grad_mask<S>(session_, arguments_);
  }

 private:
  const AttentionLayout& layout() const { return arguments_.job.layout; }

  void set_tiles(std::int64_t query_tile, std::int64_t key_tile) {
    arguments_.query_tiles = make_tiles(layout(), layout().queries, query_tile);
    arguments_.key_tiles = make_tiles(layout(), layout().keys, key_tile);
  }

  // counters: of 32 bits, that begin at 0; sums: floats. Then works out delta.
  template <class S>
  void allocate(std::int64_t counters, std::int64_t sums) {
    Scratch scratch;
    const auto bytes_of = [](std::int64_t count, std::size_t size) { return static_cast<std::size_t>(count) * size; };
    const std::size_t before =
        scratch.add(layout().packed ? bytes_of(2 * (layout().count() + 1), sizeof(std::int64_t)) : 0);
    const std::size_t delta = scratch.add(rows_ * sizeof(typename Wide<S>::type));
    const std::size_t turns = scratch.add(bytes_of(counters, sizeof(std::uint32_t)));
    const std::size_t of_sums = scratch.add(bytes_of(sums, sizeof(float)));
    unsigned char* const memory = session_.scratch(scratch.bytes());
    arguments_.delta = memory + delta;
    arguments_.query_sums.ticket = reinterpret_cast<std::uint32_t*>(memory + turns);
    arguments_.query_sums.turns = arguments_.query_sums.ticket + 1;
    arguments_.query_sums.sums = reinterpret_cast<float*>(memory + of_sums);
    if (counters > 0) {
      check(cudaMemsetAsync(memory + turns, 0, of_sums - turns, session_.stream()), "clearing its scratch memory");
    }
    if (layout().packed) count_packed_tiles(session_, arguments_, reinterpret_cast<std::int64_t*>(memory + before));
    launch("attention_delta", attention_delta<S>, static_cast<std::int64_t>((rows_ + kDeltaRows - 1) / kDeltaRows),
           32 * kDeltaRows, session_.stream(), arguments_);
  }

  Session& session_;
  AttentionArguments arguments_{};
  std::size_t rows_;
};

}  // namespace

void run_attention_backward(const AttentionJob& job, const AttentionGrads& grads, const Stream& stream) {
  check_lengths(job);
  Session session(stream);
  BackwardRun run(session, job, grads);
  const bool any =
      grads.grad_query.data != nullptr || grads.grad_key.data != nullptr || grads.grad_value.data != nullptr;
  if (any && job.kv_heads > 0 && job.layout.count() > 0) {
    const Path path = path_of(job.dtype);
    if (path == Path::plain) {
      with_element_type(job.dtype, [&]<class S>(S) { run.run_plain<S>(); });
    } else {
      with_shape(job, [&]<class S, int kDepth>() {
        if (path == Path::sm90) return run.run_on_tensor_cores<Sm90, S, kDepth>();
        if constexpr (kDepth <= 128) {
          run.run_on_tensor_cores<Sm80, S, kDepth>();
        } else {
          run.run_plain<S>();  // no tiles of this depth fit into the shared memory of all such devices
        }
      });
    }
  }
  if (grads.grad_mask.data != nullptr) with_element_type(job.dtype, [&]<class S>(S) { run.run_mask<S>(); });
  session.finish();
}

}  // namespace fusestep::cuda
