// attention_dropout_words (math/dropout.h) for many queries and keys at once, with the same bits. Most of the
// first three rounds depends only on the query or only on the key group. What remains of them is one multiplication.
#pragma once

#include <cstdint>

#include "math/dropout.h"
#include "math/philox.h"

namespace fusestep {

// Of one query, or of a vector of them.
template <class W>
struct DropoutQuery {
  W high;
  W low;
};

// Of one group of kDropoutGroup keys.
template <class W>
struct DropoutKeys {
  W round2;
  W round3_word0;
  W round3_word2;
  W round3_word3;
};

// Of one head of one batch.
class AttentionDropout {
 public:
  FUSESTEP_HD AttentionDropout(const DropoutRule& rule, std::int64_t batch_head)
      : AttentionDropout(rule.seed.value(), rule.offset, batch_head) {}

  template <class W>
  FUSESTEP_HD DropoutQuery<W> query(W position) const {
    DropoutQuery<W> part;
    mul_wide(kPhiloxMultiplier0, position ^ W(head_high_ ^ key0_), part.high, part.low);
    part.high = part.high ^ W(key1_ + kPhiloxWeyl1);
    return part;
  }

  template <class W>
  FUSESTEP_HD DropoutKeys<W> keys(W group) const {
    DropoutKeys<W> part;
    W high0, high1, low1;
    mul_wide(kPhiloxMultiplier0, group, high0, part.round2);
    mul_wide(kPhiloxMultiplier1, high0 ^ W(offset_ ^ key1_), high1, low1);
    mul_wide(kPhiloxMultiplier0, high1 ^ W(head_low_ ^ (key0_ + kPhiloxWeyl0)), high0, part.round3_word3);
    part.round3_word0 = low1 ^ W(key0_ + 2 * kPhiloxWeyl0);
    part.round3_word2 = high0 ^ W(key1_ + 2 * kPhiloxWeyl1);
    return part;
  }

  // The words of attention_dropout_words.
  template <class W>
  FUSESTEP_HD PhiloxWords<W> words(const DropoutQuery<W>& query, const DropoutKeys<W>& keys) const {
    W high, low;
    mul_wide(kPhiloxMultiplier1, query.high ^ keys.round2, high, low);
    PhiloxWords<W> words{{high ^ keys.round3_word0, low, query.low ^ keys.round3_word2, keys.round3_word3}};
    std::uint32_t key0 = key0_ + 3 * kPhiloxWeyl0;
    std::uint32_t key1 = key1_ + 3 * kPhiloxWeyl1;
    for (int round = 3; round < kPhiloxRounds; ++round) {
      words = philox_round(words, key0, key1);
      key0 += kPhiloxWeyl0;
      key1 += kPhiloxWeyl1;
    }
    return words;
  }

 private:
  FUSESTEP_HD AttentionDropout(std::uint64_t seed, std::uint32_t offset, std::int64_t batch_head)
      : key0_(static_cast<std::uint32_t>(seed)), key1_(static_cast<std::uint32_t>(seed >> 32)), offset_(offset) {
    mul_wide(kPhiloxMultiplier1, static_cast<std::uint32_t>(batch_head), head_high_, head_low_);
  }

  std::uint32_t key0_;
  std::uint32_t key1_;
  std::uint32_t offset_;
  std::uint32_t head_high_;
  std::uint32_t head_low_;
};

}  // namespace fusestep
