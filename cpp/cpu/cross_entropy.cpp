#include "cpu/cross_entropy.h"

#include <limits>
#include <vector>

#include "cpu/kernel_table.h"
#include "threads/threads.h"

namespace fusestep {

namespace {

void store(const CrossEntropyJob& job, const VectorTensor& to, std::int64_t i, double value) {
  if (job.dtype == DType::float64) {
    static_cast<double*>(to.data)[i * to.stride] = value;
  } else {
    static_cast<float*>(to.data)[i * to.stride] = static_cast<float>(value);
  }
}

std::int64_t count_labels(const CrossEntropyJob& job) {
  std::int64_t counted = 0;
  for (std::int64_t row = 0; row < job.rows; ++row) counted += job.labels[row * job.label_stride] != job.ignore_index;
  return counted;
}

}  // namespace

void cpu_cross_entropy(const CrossEntropyJob& job, const Stream& /*stream*/) {
  const std::int64_t counted = job.reduction == Reduction::mean ? count_labels(job) : 1;
  const double scale = counted > 0 ? 1 / static_cast<double>(counted) : 1;
  std::vector<CrossEntropyResult> results(static_cast<std::size_t>(job.rows));
  parallel_for(job.rows, [&](std::int64_t row) {
    results[static_cast<std::size_t>(row)] = cpu_kernels().cross_entropy(job, row, scale);
  });
  double total = 0;
  for (std::int64_t row = 0; row < job.rows; ++row) {
    const CrossEntropyResult& result = results[static_cast<std::size_t>(row)];
    store(job, job.lse, row, result.lse);
    if (job.reduction == Reduction::none) store(job, job.loss, row, result.loss);
    total += result.loss;
  }
  if (job.reduction == Reduction::none) return;
  store(job, job.loss, 0,
        counted > 0 ? total / static_cast<double>(counted) : std::numeric_limits<double>::quiet_NaN());
}

}  // namespace fusestep
