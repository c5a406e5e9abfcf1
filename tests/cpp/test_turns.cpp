// The order in which blocks of attention's backward pass add to the gradient of the queries (cuda/attention/turns.h),
// without a device: every block adds once to each tile that it visits, in the order that before() tells, and nobody
// waits for ever, whichever block goes on first.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "cuda/attention/turns.h"

namespace {

using fusestep::AttentionSequence;
using fusestep::Causal;
using fusestep::make_band;

constexpr int kQueries = 64;
constexpr int kKeys = 128;
using Order = fusestep::cuda::Turns<kQueries, kKeys>;

void require(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "test_turns: %s\n", what);
  std::exit(1);
}

struct Block {
  int tile;
  Order::Visit visit;
  int step = 0;

  bool done() const { return step == visit.end - visit.begin; }
};

// running: blocks that can run at the same time; others begin in the order of their tickets when one ends.
void simulate(const AttentionSequence& sequence, int running, std::int64_t resident, std::mt19937& random) {
  Order order;
  order.begin(sequence, resident);
  const auto query_tiles = static_cast<int>((sequence.queries + kQueries - 1) / kQueries);
  std::vector<std::vector<int>> added(static_cast<std::size_t>(query_tiles));
  std::vector<Block> waiting;  // the next ticket last
  for (int ticket = order.key_tiles() - 1; ticket >= 0; --ticket) {
    const int tile = order.rotates() ? ticket : order.key_tiles() - 1 - ticket;
    waiting.push_back({tile, order.visit(tile)});
  }
  require(!order.rotates() || order.key_tiles() <= resident, "blocks that wait in a circle do not all run");
  std::vector<Block> blocks;
  while (!waiting.empty() || !blocks.empty()) {
    while (static_cast<int>(blocks.size()) < running && !waiting.empty()) {
      blocks.push_back(waiting.back());
      waiting.pop_back();
    }
    std::shuffle(blocks.begin(), blocks.end(), random);
    bool progress = false;
    for (Block& block : blocks) {
      if (block.done()) continue;
      const int tile = order.at_step(block.tile, block.visit, block.step);
      require(tile >= block.visit.begin && tile < block.visit.end, "a block leaves its tiles");
      auto& of_tile = added[static_cast<std::size_t>(tile)];
      if (order.before(block.tile, tile) != static_cast<int>(of_tile.size())) continue;  // not its turn
      of_tile.push_back(block.tile);
      ++block.step;
      progress = true;
    }
    const auto size = blocks.size();
    std::erase_if(blocks, [](const Block& block) { return block.done(); });
    require(progress || blocks.size() < size, "all blocks wait");
  }
  for (int tile = 0; tile < query_tiles; ++tile) {
    require(static_cast<int>(added[static_cast<std::size_t>(tile)].size()) == order.count(tile),
            "a tile has another number of additions than count() tells");
  }
}

}  // namespace

int main() {
  std::mt19937 random(7);
  const std::int64_t lengths[] = {1, 63, 64, 65, 127, 128, 129, 300, 1000, 4096, 9000};
  for (const std::int64_t queries : lengths) {
    for (const std::int64_t keys : lengths) {
      for (const Causal causal : {Causal::none, Causal::top_left, Causal::bottom_right}) {
        for (const std::int64_t window : {fusestep::kUnlimited, std::int64_t(0), std::int64_t(200)}) {
          AttentionSequence sequence{};
          sequence.queries = queries;
          sequence.keys = keys;
          sequence.band = make_band(causal, window, window, queries, keys);
          for (const std::int64_t resident : {0, 33}) {
            for (const int running : {33, 132}) simulate(sequence, running, resident, random);
            if (resident == 0) simulate(sequence, 1, resident, random);  // in order, one block after the other will do
          }
        }
      }
    }
  }
  std::puts("test_turns: all right");
}
