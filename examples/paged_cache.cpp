// SPDX-License-Identifier: Apache-2.0
// A paged cache: two conversations share one pool of pages, grow chunk by chunk and are answered in one call.
#include <skim/reference/attention.hpp>
#include <skim/skim.hpp>

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace {

constexpr std::int64_t pages = 40, page_size = 16, chunk = 48, Hq = 4, Hk = 2, D = 64;

std::vector<float> noise(std::int64_t n) {
  static std::mt19937 generator(1);
  static std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& x : values) x = normal(generator);
  return values;
}

}  // namespace

int main() {
  std::vector<skim::bf16> keys(pages * page_size * Hk * D), values(keys.size());
  const skim::tensor_view<skim::bf16, 4> k(keys.data(), {pages, page_size, Hk, D});
  const skim::tensor_view<skim::bf16, 4> v(values.data(), {pages, page_size, Hk, D});

  const std::int64_t lengths[] = {5 * chunk, 2 * chunk};  // a long and a short conversation take turns
  std::vector<std::int32_t> tables[2];
  skim::kv_cache caches[2];
  std::int32_t taken = 0;
  for (std::int64_t done = 0; done < lengths[0]; done += chunk) {
    for (int s = 0; s < 2; ++s) {
      if (done >= lengths[s]) continue;
      for (std::int64_t i = 0; i < chunk / page_size; ++i) tables[s].push_back(++taken * 7 % pages);  // in any order
      caches[s] = skim::paged_cache(k, v, tables[s].data(), static_cast<std::int64_t>(tables[s].size()), done + chunk);
      const std::vector<float> new_keys = noise(chunk * Hk * D), new_values = noise(chunk * Hk * D);
      skim::append_args append;
      append.k = skim::tensor_view<const float, 3>(new_keys.data(), {chunk, Hk, D});
      append.v = skim::tensor_view<const float, 3>(new_values.data(), {chunk, Hk, D});
      append.kv = caches[s];
      if (!skim::cpu::append(append, skim::serial_executor{})) return 1;
    }
  }

  // Both newest chunks in one call: rows [0, 48) belong to the first conversation, [48, 96) to the second.
  const std::int64_t offsets[] = {0, chunk, 2 * chunk};
  const std::vector<float> q = noise(2 * chunk * Hq * D);
  std::vector<float> out(q.size());
  skim::attention_args args;
  args.q = skim::tensor_view<const float, 3>(q.data(), {2 * chunk, Hq, D});
  args.out = skim::tensor_view<float, 3>(out.data(), {2 * chunk, Hq, D});
  const skim::kv_view views[] = {caches[0], caches[1]};
  args.sequences = views;
  args.offsets = offsets;
  args.sequence_count = 2;

  if (!skim::check_indices(args)) return 1;  // block tables that come from outside are worth a look
  const skim::cpu::attention<> op;
  const skim::buffer workspace(op.workspace_bytes(args, 1));
  if (!op.run(args, {}, workspace, skim::serial_executor{})) return 1;

  std::vector<double> exact(out.size());
  skim::reference::attend(args, nullptr, {exact.data(), {2 * chunk, Hq, D}});
  double worst = 0;
  for (std::size_t i = 0; i < out.size(); ++i)
    worst = std::max(worst, std::abs(static_cast<double>(out[i]) - exact[i]));
  std::printf("%d and %d tokens in %d pages: largest difference to the reference %.1e\n", static_cast<int>(lengths[0]),
              static_cast<int>(lengths[1]), static_cast<int>(taken), worst);
  return worst < 1e-5 ? 0 : 1;
}
