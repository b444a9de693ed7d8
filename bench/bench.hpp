// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <skim/interop/tbb.hpp>
#include <skim/types.hpp>

#include <nlohmann/json.hpp>

#include <chrono>
#include <string>
#include <vector>

namespace bench {

/// An attention call. See skim/attention.hpp for the glossary.
struct shape {
  std::int64_t Hq = 32, Hk = 8, D = 128, Tq = 128, Tk = 8192;
};

/// What the attention rows are made of.
struct attention_rows {
  std::vector<shape> shapes;
  std::vector<skim::element> storage;
  std::vector<std::int64_t> budgets;
  bool pairs_first = false;  ///< bf16 rows multiply pairs; else they widen to f32
};

/// Flops a second of all threads together, for a tenth of a second; 0 where the processor has no bf16 dot product.
struct multiply_rates {
  double fma_f32, dot_bf16;
};
multiply_rates measure_multiply_rates(const skim::tbb_executor& executor);

/// The ceilings: f32 multiply-add, bf16 dot product, bf16 AMX, reading memory.
void add_roofline_rows(const skim::tbb_executor& executor);

/// Dense and QUOKA attention; a line that says what is wrong with the settings, or an empty one.
std::string add_attention_rows(const attention_rows& rows, const skim::tbb_executor& executor);

/// Evictors on a cache of 32768 tokens from which 128 leave, and reading its keys once.
void add_eviction_rows(const std::vector<skim::element>& storage, const skim::tbb_executor& executor);

/// The FFN of 128 tokens in f32 and bf16, as far as `storage` has them: dense, FastForward, and by other libraries that
/// were there when this was compiled.
void add_ffn_rows(const std::vector<skim::element>& storage, bool pairs_first, const skim::tbb_executor& executor);

/// Bytes of the last-level cache; 64 MiB where the system does not tell.
std::int64_t last_level_cache_bytes();

/// Reads `count` floats once, in pieces of `piece`; what does not fill one is left out. Returns the bytes read.
double read_once(const float* from, std::int64_t count, std::int64_t piece, const skim::tbb_executor& executor);

/// Microseconds that a call of `work` takes.
template <class Work>
double microseconds(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
}

/// Says on a terminal what runs now.
void show_progress(const std::string& row);

/// The JSON that Google Benchmark wrote, with machine, compiler and flags in its context, `roof` in each row of attention
/// and FFN, the floor of each of QUOKA's stages and, in each eviction row, its time as a multiple of reading K once: `reads_of_k`.
nlohmann::ordered_json complete(const std::string& written);

/// Prints the medians.
void print_table(const nlohmann::ordered_json& result);

}  // namespace bench
