#include <cstring>
#include <map>
#include <memory>

#include "cuda/errors.h"
#include "cuda/memory.h"

namespace fusestep::cuda {

namespace {

void* allocate(std::size_t bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes), "allocating its tables");
  return memory;
}

// A table on the device and the pinned copy that it was uploaded from, so that the upload need not be waited for.
class Table {
 public:
  explicit Table(std::size_t capacity) : capacity_(capacity) {
    device_ = allocate(capacity);
    check(cudaMallocHost(&pinned_, capacity), "allocating pinned memory for its tables");
    check(cudaEventCreateWithFlags(&uploaded_, cudaEventDisableTiming), "creating an event");
  }

  bool fits(std::size_t bytes) const { return bytes <= capacity_; }
  bool holds(const Bytes& content) const {
    return size_ == content.size() && std::memcmp(pinned_, content.data(), size_) == 0;
  }
  const void* device() const { return device_; }

  void fill(const Bytes& content, cudaStream_t stream) {
    if (size_ != 0) check(cudaEventSynchronize(uploaded_), "waiting for an earlier upload");
    size_ = 0;
    std::memcpy(pinned_, content.data(), content.size());
    check(cudaMemcpyAsync(device_, pinned_, content.size(), cudaMemcpyHostToDevice, stream), "uploading a table");
    check(cudaEventRecord(uploaded_, stream), "recording an event");
    size_ = content.size();
  }

  std::uint64_t last_session = 0;

 private:
  std::size_t capacity_;
  std::size_t size_ = 0;  // 0: it holds nothing
  void* device_ = nullptr;
  void* pinned_ = nullptr;
  cudaEvent_t uploaded_ = nullptr;
};

constexpr std::size_t kKeptTables = 16;  // for each stream; more only if one session uses more

struct StreamMemory {
  std::vector<std::unique_ptr<Table>> tables;
  void* scratch = nullptr;
  std::size_t scratch_bytes = 0;
  std::uint64_t session = 0;
};

// Memory is never given back at exit: the driver may be gone by then.
struct AllMemory {
  std::mutex mutex;
  std::map<std::pair<int, cudaStream_t>, StreamMemory> of_stream;
  std::map<int, cudaStream_t> upload_streams;
};

AllMemory& all() {
  static auto* memory = new AllMemory;
  return *memory;
}

// During a capture CUDA refuses calls that might disturb it, unless the thread has asked for this mode. What is
// allocated and uploaded here is no part of the graph.
class CaptureLeave {
 public:
  CaptureLeave() { check(cudaThreadExchangeStreamCaptureMode(&mode_), "allocating during a capture"); }
  ~CaptureLeave() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  CaptureLeave(const CaptureLeave&) = delete;
  CaptureLeave& operator=(const CaptureLeave&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Memory whose graphs are gone, still to be freed: CUDA calls release() on a thread of its own, where no call of the
// runtime is allowed.
class Released {
 public:
  static void release(void* memory) {
    const std::lock_guard<std::mutex> lock(instance().mutex_);
    instance().memory_.push_back(memory);
  }

  static void free_all() {
    std::vector<void*> memory;
    {
      const std::lock_guard<std::mutex> lock(instance().mutex_);
      memory.swap(instance().memory_);
    }
    for (void* pointer : memory) check(cudaFree(pointer), "freeing the memory of a CUDA graph");
  }

 private:
  static Released& instance() {
    static auto* released = new Released;  // CUDA may call release() while the process ends
    return *released;
  }

  std::mutex mutex_;
  std::vector<void*> memory_;
};

// Memory that belongs to the graph which `stream` is captured into: it is freed after the graph and all its executable
// copies have been destroyed and their work has ended.
void* graph_memory(cudaStream_t stream, std::size_t bytes) {
  const CaptureLeave leave;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long id = 0;
  cudaGraph_t graph = nullptr;
  check(cudaStreamGetCaptureInfo(stream, &status, &id, &graph), "asking for the graph of a capture");
  void* memory = allocate(bytes);
  cudaUserObject_t owner = nullptr;
  const cudaError_t made = cudaUserObjectCreate(&owner, memory, Released::release, 1, cudaUserObjectNoDestructorSync);
  if (made != cudaSuccess) cudaFree(memory);
  check(made, "giving memory to a CUDA graph");
  check(cudaGraphRetainUserObject(graph, owner, 1, cudaGraphUserObjectMove), "giving memory to a CUDA graph");
  return memory;
}

// Filled at once, by another stream: the upload is no part of the graph.
const void* captured_table(const Bytes& content, cudaStream_t captured, int device) {
  void* memory = graph_memory(captured, content.size());
  const CaptureLeave leave;
  cudaStream_t& stream = all().upload_streams[device];
  if (stream == nullptr) check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
  check(cudaMemcpyAsync(memory, content.data(), content.size(), cudaMemcpyHostToDevice, stream), "uploading a table");
  check(cudaStreamSynchronize(stream), "uploading a table");
  return memory;
}

}  // namespace

Session::Session(const Stream& stream)
    : wait_(stream.wait),
      device_(stream.device.type == kDeviceCuda ? stream.device.index : 0),
      stream_(static_cast<cudaStream_t>(stream.handle)),
      lock_(all().mutex) {
  check(cudaGetDevice(&previous_device_), "asking for the current device");
  if (previous_device_ != device_) check(cudaSetDevice(device_), "choosing the device");
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream_, &status), "asking whether the stream is captured");
  capturing_ = status != cudaStreamCaptureStatusNone;
  if (!capturing_) Released::free_all();
  ++all().of_stream[{device_, stream_}].session;
}

Session::~Session() {
  if (previous_device_ != device_) cudaSetDevice(previous_device_);
}

const void* Session::table(const Bytes& content) {
  if (content.empty()) return nullptr;
  if (capturing_) return captured_table(content, stream_, device_);
  StreamMemory& memory = all().of_stream[{device_, stream_}];
  Table* spare = nullptr;  // the longest unused one that is large enough and that no kernel of this session reads
  for (const auto& table : memory.tables) {
    if (table->holds(content)) {
      table->last_session = memory.session;
      return table->device();
    }
    const bool usable = table->last_session != memory.session && table->fits(content.size());
    if (usable && (spare == nullptr || table->last_session < spare->last_session)) spare = table.get();
  }
  if (spare == nullptr || memory.tables.size() < kKeptTables) {
    // Room to grow by half: lists change by a few tensors at a time.
    memory.tables.push_back(std::make_unique<Table>(content.size() + content.size() / 2));
    spare = memory.tables.back().get();
  }
  spare->fill(content, stream_);
  spare->last_session = memory.session;
  return spare->device();
}

std::uint32_t* Session::counter() {
  // A table of zeros: after each use its content is what it was.
  return static_cast<std::uint32_t*>(const_cast<void*>(table(Bytes(sizeof(std::uint32_t)))));
}

unsigned char* Session::scratch(std::size_t bytes) {
  if (capturing_) return static_cast<unsigned char*>(graph_memory(stream_, bytes));
  StreamMemory& memory = all().of_stream[{device_, stream_}];
  if (memory.scratch_bytes < bytes) {
    void* larger = allocate(bytes + bytes / 2);
    check(cudaFree(memory.scratch), "freeing scratch memory");  // waits for the kernels that still use it
    memory.scratch = larger;
    memory.scratch_bytes = bytes + bytes / 2;
  }
  return static_cast<unsigned char*>(memory.scratch);
}

void Session::read_back(void* to, const void* from, std::size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_), "reading a result");
  check(cudaStreamSynchronize(stream_), "waiting for a result");
}

void Session::finish() {
  if (wait_) check(cudaStreamSynchronize(stream_), "waiting for the kernels");
}

}  // namespace fusestep::cuda
