#include "threads/openmp.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string_view>
#include <vector>

#if defined(__APPLE__)
#include <mach-o/dyld.h>
#else
#include <link.h>
#endif

namespace fusestep::openmp {
namespace {

std::string_view file_name(std::string_view path) { return path.substr(path.rfind('/') + 1); }

// How many libraries have been loaded so far. While it does not grow, another search cannot find more.
std::uint64_t libraries_loaded() {
#if defined(__APPLE__)
  return _dyld_image_count();
#else
  std::uint64_t loaded = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* out) {
        *static_cast<std::uint64_t*>(out) = info->dlpi_adds;
        return 1;  // the count is the same in every entry: stop at the first
      },
      &loaded);
  return loaded;
#endif
}

std::vector<std::string> library_paths() {
  std::vector<std::string> paths;
#if defined(__APPLE__)
  for (std::uint32_t i = 0; i < _dyld_image_count(); ++i)
    if (const char* path = _dyld_get_image_name(i)) paths.emplace_back(path);
#else
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* out) {
        static_cast<std::vector<std::string>*>(out)->emplace_back(info->dlpi_name);
        return 0;
      },
      &paths);
#endif
  return paths;
}

// The entry points as seen from `scope` (a library and what it depends on, or RTLD_DEFAULT), if there are all of them.
std::optional<Runtime> runtime_in(void* scope) {
  void* parallel = dlsym(scope, "GOMP_parallel");
  void* max_threads = dlsym(scope, "omp_get_max_threads");
  void* in_parallel = dlsym(scope, "omp_in_parallel");
  Dl_info library{};
  Dl_info other{};
  if (!parallel || !max_threads || !in_parallel || !dladdr(parallel, &library)) return std::nullopt;
  // With two runtimes in one scope, names could come from different ones: then this is no runtime.
  for (void* entry : {max_threads, in_parallel})
    if (!dladdr(entry, &other) || other.dli_fbase != library.dli_fbase) return std::nullopt;
  void* fork_call = dlsym(scope, "__kmpc_fork_call");
  const bool is_libomp = fork_call && dladdr(fork_call, &other) && other.dli_fbase == library.dli_fbase;
  dlopen(library.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);  // it must stay while we hold its addresses

  const std::string_view name = file_name(library.dli_fname);
  return Runtime{reinterpret_cast<void (*)(void (*)(void*), void*, unsigned, unsigned)>(parallel),
                 reinterpret_cast<int (*)()>(max_threads), reinterpret_cast<int (*)()>(in_parallel), is_libomp,
                 std::string(name.substr(0, name.find('.')))};
}

struct Found {
  std::optional<Runtime> runtime;
  bool is_torchs = false;
};

Found search() {
  // torch loads its runtime into the global scope, where it wins over all others also for torch itself.
  if (auto runtime = runtime_in(RTLD_DEFAULT)) return {std::move(runtime), true};

  // Otherwise search the libraries that were loaded privately, torch's first: it finds the runtime that torch is bound
  // to.
  const std::vector<std::string> paths = library_paths();
  for (const std::string_view prefix : {"libtorch_cpu.", "libgomp", "libomp", "libiomp5"})
    for (const std::string& path : paths)
      if (file_name(path).starts_with(prefix))
        if (void* library = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD))
          if (auto runtime = runtime_in(library)) return {std::move(runtime), prefix == "libtorch_cpu."};
  return {};
}

// A search takes locks of the dynamic loader. If the process forked during a search, they would stay locked in the
// child for ever. So fork takes `searching` first, and no search runs while the process forks.
std::mutex searching;
std::uint64_t searched_at = 0;  // guarded by searching, like every change of the three below
std::atomic<const Runtime*> known{nullptr};
std::atomic<bool> known_is_torchs{false};  // then there is nothing more to look for
std::atomic<const Runtime*> of_parent{nullptr};

void search_if_libraries_were_loaded() {
  const std::uint64_t loaded = libraries_loaded();
  if (known_is_torchs.load(std::memory_order_relaxed) || loaded == searched_at) return;
  Found found = search();
  const Runtime* before = known.load(std::memory_order_relaxed);
  // Never freed: another thread may be using it. A process sees one or two of them in its life.
  if (found.runtime && (!before || before->parallel != found.runtime->parallel))
    known.store(new Runtime(*std::move(found.runtime)), std::memory_order_release);
  known_is_torchs.store(found.is_torchs, std::memory_order_release);
  searched_at = loaded;
}

[[maybe_unused]] const int fork_handlers = pthread_atfork(
    [] {
      searching.lock();
      search_if_libraries_were_loaded();  // a runtime that the child loads later has no threads of the parent
    },
    [] { searching.unlock(); },
    [] {
      of_parent.store(known.load(std::memory_order_relaxed), std::memory_order_relaxed);
      searching.unlock();
    });

}  // namespace

const Runtime* find() {
  if (!known_is_torchs.load(std::memory_order_acquire)) {
    const std::lock_guard lock(searching);
    search_if_libraries_were_loaded();
  }
  return known.load(std::memory_order_acquire);
}

bool works_here(const Runtime& runtime) {
  return runtime.survives_fork || &runtime != of_parent.load(std::memory_order_relaxed);
}

}  // namespace fusestep::openmp
