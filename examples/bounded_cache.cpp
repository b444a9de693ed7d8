// SPDX-License-Identifier: Apache-2.0
// A cache that never grows: a text of any length streams through room for 64 + 16 tokens. A marked token, whose key
// differs from all others', is still there at the end: KeyDiff keeps what is unlike the rest.
#include <skim/skim.hpp>

#include <algorithm>
#include <cstdio>
#include <random>
#include <vector>

namespace {

constexpr std::int64_t budget = 64, chunk = 16, capacity = budget + chunk, Hq = 4, Hk = 2, D = 64;
constexpr std::int64_t chunks = 100, marked = 123;

}  // namespace

int main() {
  std::vector<skim::bf16> keys(capacity * Hk * D), values(keys.size());
  std::vector<float> norms(Hk * capacity), q(chunk * Hq * D), out(q.size()), k(chunk * Hk * D), v(k.size());
  std::vector<std::int32_t> positions(Hk * capacity), slots(Hk * budget), counts(Hk);

  skim::cpu::bounded_cache<skim::standard_evictor> cache;  // views over the host's memory; it owns nothing
  cache.op.evictor = skim::evictors::standard(budget);
  cache.kv() = skim::contiguous_cache(skim::tensor_view<skim::bf16, 3>(keys.data(), {capacity, Hk, D}),
                                      skim::tensor_view<skim::bf16, 3>(values.data(), {capacity, Hk, D}), 0);
  cache.kv().positions = positions.data();
  cache.kv().inverse_norms = norms.data();
  cache.kv().positions_stride = cache.kv().inverse_norms_stride = capacity;
  cache.kept.indices = slots.data();
  cache.kept.counts = counts.data();
  cache.kept.rows = Hk;
  cache.kept.capacity = budget;

  skim::attention_args args;
  args.q = skim::tensor_view<const float, 3>(q.data(), {chunk, Hq, D});
  args.out = skim::tensor_view<float, 3>(out.data(), {chunk, Hq, D});
  skim::eviction_args longest = cache.settings;  // what is largest needs the most memory
  longest.kv.tokens = capacity;
  longest.new_tokens = chunk;
  args.kv = longest.kv;
  const skim::cpu::attention<> reader;
  const skim::buffer state(cache.op.state_bytes(longest));
  const skim::buffer workspace(std::max(cache.op.workspace_bytes(longest, 1), reader.workspace_bytes(args, 1)));
  cache.state = state;
  const skim::serial_executor executor;
  if (!cache.op.reset(longest, cache.state, executor)) return 1;

  std::mt19937 generator(1);
  std::normal_distribution<float> noise;
  for (std::int64_t i = 0; i < chunks; ++i) {
    for (float& x : k) x = 1 + 0.5f * noise(generator);  // keys that share a direction, as a model's do
    for (float& x : v) x = noise(generator);
    for (float& x : q) x = noise(generator);
    if (i == marked / chunk) {
      for (std::int64_t d = 0; d < Hk * D; ++d) k[marked % chunk * Hk * D + d] = d % 2 == 0 ? 1.0f : -1.0f;
    }
    if (!cache.append(skim::tensor_view<const float, 3>(k.data(), {chunk, Hk, D}),
                      skim::tensor_view<const float, 3>(v.data(), {chunk, Hk, D}), executor)) {
      return 1;
    }
    args.kv = cache.kv();
    if (!reader.run(args, {}, workspace, executor)) return 1;
    if (!cache.evict(args, nullptr, workspace, executor)) return 1;
  }
  std::int64_t found = 0;
  for (std::int64_t slot = 0; slot < cache.kv().tokens; ++slot) found += cache.kv().position(0, slot) == marked;
  std::printf("%d tokens went through, %d are held; token %d is %s\n", static_cast<int>(cache.position),
              static_cast<int>(cache.kv().tokens), static_cast<int>(marked), found == 1 ? "among them" : "lost");
  return found == 1 && cache.kv().tokens == budget ? 0 : 1;
}
