// The masks that follow from positions alone. Causal, sliding window and key lengths leave each query one range of
// keys: they only bound a loop, and tiles outside are never computed. Boolean and additive masks are applied as well.
#pragma once

#include <cstdint>

#include "math/hd.h"

namespace fusestep {

inline constexpr std::int64_t kUnlimited = INT64_C(1) << 40;  // more than any sequence; sums of a few do not overflow

struct PositionRange {
  std::int64_t begin;  // from 0 to the number of positions, of an empty range too
  std::int64_t end;    // never below begin
};

// Query i is aligned with key i + shift. It attends to `left` keys before that one and to `right` keys after it.
struct Band {
  std::int64_t queries;
  std::int64_t keys;  // those that exist: the key length
  std::int64_t shift;
  std::int64_t left;
  std::int64_t right;

  FUSESTEP_HD PositionRange keys_of(std::int64_t query) const {
    return clipped(query + shift - left, query + shift + right + 1, keys);
  }

  // The queries that attend to `key`, for the passes over keys.
  FUSESTEP_HD PositionRange queries_of(std::int64_t key) const {
    if (key >= keys) return {0, 0};
    return clipped(key - shift - right, key - shift + left + 1, queries);
  }

  // The keys that any query from `first` to `last` attends to, and the queries that attend to any key from `first` to
  // `last`. Neighbours' ranges overlap or touch, so each is one range.
  FUSESTEP_HD PositionRange keys_of(std::int64_t first, std::int64_t last) const {
    return clipped(first + shift - left, last + shift + right + 1, keys);
  }
  FUSESTEP_HD PositionRange queries_of(std::int64_t first, std::int64_t last) const {
    if (last >= keys) last = keys - 1;
    if (first > last) return {0, 0};
    return clipped(first - shift - right, last - shift + left + 1, queries);
  }

  FUSESTEP_HD static PositionRange clipped(std::int64_t begin, std::int64_t end, std::int64_t size) {
    begin = begin < 0 ? 0 : begin;
    begin = begin > size ? size : begin;
    end = end > size ? size : end;
    return {begin, end < begin ? begin : end};
  }
};

enum class Causal { none, top_left, bottom_right };

// window_left, window_right: kUnlimited where there is no window. Causal and windows count on one diagonal: from the
// first query and key, or from the last ones.
FUSESTEP_HD Band make_band(Causal causal, std::int64_t window_left, std::int64_t window_right, std::int64_t queries,
                           std::int64_t keys) {
  const std::int64_t right = causal != Causal::none && window_right > 0 ? 0 : window_right;
  return {queries, keys, causal == Causal::bottom_right ? keys - queries : 0, window_left, right};
}

}  // namespace fusestep
