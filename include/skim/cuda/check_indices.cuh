// SPDX-License-Identifier: Apache-2.0
/// \file `skim::check_indices` where the host cannot read what it reads: `cuda::check_indices`.
#pragma once

#include <skim/cuda/attend.cuh>

namespace skim { inline namespace v0_2 { namespace cuda {

/// What `check_indices` reads, in the order in which faults are looked for.
enum class index_array : std::int32_t {
  none,  ///< nothing is wrong
  first_offset,
  offsets,
  batch_tokens,
  last_offset,
  block_table,
  lengths,
  positions,
  counts,
  indices,
};

/// The first number that is out of range. It is written on the device; zeros where all is well.
struct index_fault {
  index_array array = index_array::none;
  std::int32_t sequence = 0;                  ///< of the call; of lists 0
  std::int64_t row = 0, entry = 0;            ///< a head or a row of lists; a place in the array, or in its row
  std::int64_t got = 0, least = 0, most = 0;  ///< the number, and its bounds
  std::uint64_t place = 0;                    ///< for the search
};

/// The report that `skim::check_indices` would give: status bad_index, or ok.
inline report report_of(const index_fault& fault) {
  constexpr const char* names[] = {"",
                                   "batch.offsets[0]",
                                   "batch.offsets[s + 1]",
                                   "batch.tokens[s]",
                                   "batch.offsets[sequences]",
                                   "kv.block_table[i]",
                                   "kv.lengths[h]",
                                   "kv.positions[h][i]",
                                   "lists.counts[r]",
                                   "lists.indices[r][i]"};
  if (fault.array == index_array::none) return {};
  const char* const name = names[static_cast<int>(fault.array)];
  if (fault.array == index_array::first_offset || fault.array == index_array::last_offset) {
    return skim::fault(status::bad_index, name, fault.got, fault.least);
  }
  return skim::detail::check_range(name, fault.got, fault.least, fault.most, status::bad_index);
}

namespace detail {

/// What is looked at in one launch.
enum class index_stage : int { batch, cache, lists };

struct index_checks {
  static constexpr int threads = 256;
  static constexpr std::int64_t most_lanes = 64;  // blocks of threads for the lists of a sequence and head

  attention_sequence known;  // of a batch its longest
  kv_batch batch;
  index_lists lists;
  index_fault* found;
  std::int64_t rows, first_block;  // rows: of q; first_block: of the sequence, in the order of lists
  int sequence, lanes;
  bool tells;  // what the launch before found

  SKIM_DEVICE int rows_of(int s) const { return batch.offsets[s + 1] - batch.offsets[s]; }

  /// A number of an array, which is remembered if it is out of range and none before it is; or told if it is the one.
  SKIM_DEVICE void expect(index_array array, int s, std::int64_t row, std::int64_t entry, std::int64_t got,
                          std::int64_t least, std::int64_t most) const {
    if (got >= least && got <= most) return;
    // Two arrays are looked at in turns. Rows and entries have 30 bits; what is found stands for 0 where nothing is.
    const bool second = array == index_array::batch_tokens || array == index_array::indices;
    const std::uint64_t order = static_cast<std::uint64_t>(static_cast<int>(array) - (second ? 1 : 0)) << 60 |
                                static_cast<std::uint64_t>(row) << 30 |
                                static_cast<std::uint64_t>(entry + (second ? 1 : 0));
    if (!tells) {
      atomicMax(reinterpret_cast<unsigned long long*>(&found->place), static_cast<unsigned long long>(~order));
    } else if (found->place == ~order) {
      *found = {array, s, row, entry, got, least, most, ~order};
    }
  }

  SKIM_DEVICE void check_batch() const {
    if (threadIdx.x == 0) {
      const std::int64_t last = batch.offsets[batch.sequences];
      expect(index_array::first_offset, 0, 0, 0, batch.offsets[0], 0, 0);
      expect(index_array::last_offset, 0, 0, 0, last, rows, rows);
    }
    for (int s = threadIdx.x; s < batch.sequences; s += threads) {
      const std::int64_t begin = batch.offsets[s];
      expect(index_array::offsets, s, s, 0, batch.offsets[s + 1], begin, begin + batch.most_rows);
      expect(index_array::batch_tokens, s, s, 0, batch.tokens[s], rows_of(s), known.kv.tokens);
    }
  }

  /// Sequence `s` of the launch.
  SKIM_DEVICE attention_sequence sequence_of(int s) const {
    attention_sequence own = known;
    if (batch.sequences == 0) return own;
    own.Tq = rows_of(s);
    own.kv.tokens = batch.tokens[s];
    own.kv.block_table += s * batch.table_stride;
    return own;
  }

  SKIM_DEVICE void check_cache(int s, int head) const {
    const attention_sequence own = sequence_of(s);
    const kv_view& kv = own.kv;
    std::int64_t longest = kv.lengths ? 0 : kv.tokens;
    for (int h = 0; kv.lengths && h < kv.heads; ++h) longest = max(longest, kv.length(h));
    longest = min(longest, kv.tokens);
    const bool has_table = head == 0 && kv.layout == kv_layout::paged;
    for (std::int64_t page = threadIdx.x; has_table && page * kv.page_size < longest; page += threads) {
      expect(index_array::block_table, sequence + s, s, page, kv.block_table[page], 0, kv.pages - 1);
    }
    if (kv.lengths && threadIdx.x == 0) {
      expect(index_array::lengths, sequence, head, 0, kv.length(head), own.Tq, kv.tokens);
    }
    if (!kv.positions || (kv.positions_stride == 0 && head > 0)) return;
    const std::int64_t slots = kv.positions_stride == 0 ? longest : min(kv.length(head), kv.tokens);
    for (std::int64_t slot = threadIdx.x; slot < slots; slot += threads) {
      expect(index_array::positions, sequence, head, slot, kv.position(head, slot), 0, skim::detail::largest_index);
    }
  }

  SKIM_DEVICE void check_lists(int s, int lane, int head) const {
    __shared__ int before;  // blocks of earlier sequences of a batch
    if (threadIdx.x == 0) before = 0;
    __syncthreads();
    int blocks = 0;
#pragma unroll 1
    for (int i = threadIdx.x; i < s; i += threads) {
      blocks += static_cast<int>(block_count(rows_of(i), lists.block_rows));
    }
    atomicAdd(&before, blocks);
    __syncthreads();
    const attention_sequence own = sequence_of(s);
    const std::int64_t past = own.past(head), count = block_count(own.Tq, lists.block_rows);
#pragma unroll 1
    for (std::int64_t b = lane; b < count; b += lanes) {
      const std::int64_t r = (first_block + before + b) * own.kv.heads + head;
      const std::int64_t listed = lists.counts[r], last = past + b * lists.block_rows - 1;
      if (threadIdx.x == 0) expect(index_array::counts, 0, r, 0, listed, 0, lists.capacity);
      if (listed > lists.capacity) continue;
      const std::int32_t* const list = lists.row(r);
#pragma unroll 1
      for (std::int64_t i = threadIdx.x; i < listed; i += threads) {
        expect(index_array::indices, 0, r, i, list[i], i == 0 ? 0 : list[i - 1] + std::int64_t{1}, last);
      }
    }
  }
};

/// Grid: of the batch's arrays 1; else sequences times `lanes`, KV heads.
template <index_stage Stage, int Threads>
__global__ void __launch_bounds__(Threads) look_at_indices(const index_checks checks) {
  static_assert(Threads == index_checks::threads, "as members count");
  start_in_chain();
  // What an earlier launch told comes first, and later arrays may not be looked at.
  if (checks.found->array != index_array::none || (checks.tells && checks.found->place == 0)) return;
  if constexpr (Stage == index_stage::batch) checks.check_batch();
  if constexpr (Stage == index_stage::cache) checks.check_cache(blockIdx.x, blockIdx.y);
  if constexpr (Stage == index_stage::lists) {
    checks.check_lists(blockIdx.x / checks.lanes, blockIdx.x % checks.lanes, blockIdx.y);
  }
}

template <index_stage Stage>
void look_at(index_checks checks, launcher& launch) {
  const std::int64_t sequences = Stage == index_stage::batch ? 1 : greater(checks.batch.sequences, 1);
  const std::int64_t heads = Stage == index_stage::batch ? 1 : checks.known.kv.heads;
  checks.lanes = 1;
  if (Stage == index_stage::lists) {
    const std::int64_t blocks = block_count(checks.known.Tq, checks.lists.block_rows);
    checks.lanes = static_cast<int>(smaller(blocks, index_checks::most_lanes));
  }
  for (const bool tells : {false, true}) {
    checks.tells = tells;
    launch(&look_at_indices<Stage, index_checks::threads>, sequences * checks.lanes, heads, index_checks::threads, 0,
           checks);
  }
}

}  // namespace detail

/// As `skim::check_indices`, of arrays in memory of the device: block tables, as far as tokens reach, lengths, positions, a
/// batch's arrays, and rows of `lists`, if given, which must be in range, ascend and lie in the past that their block sees.
/// Enqueues what writes the first fault to `*found`, memory of the device; `report_of` says what it means once it was copied
/// to the host. Nothing is allocated or synchronised: it may be captured in a graph before the call that reads the arrays.
inline launch_report check_indices(const attention_args& args, const index_lists* lists, index_fault* found,
                                   cudaStream_t stream) {
  using namespace detail;
  if (launch_report r = attend{}.check(args); !r) return r;
  if (!found) return null_fault("found");
  if (lists && sequence_count(args) > 0) {
    if (report r = skim::detail::check_range("lists.block_rows", lists->block_rows, 0, skim::detail::largest_index); !r)
      return r;
    if (report r = skim::detail::check_room(*lists, list_rows(args, lists->block_rows), 0); !r) return r;
  }
  launcher launch(stream);
  launch.clear(found, sizeof(index_fault));
  index_checks checks{};
  checks.batch = is_batch(args) ? args.batch : kv_batch{};
  checks.found = found;
  checks.rows = args.q.extents[0];
  if (lists) checks.lists = *lists;
  const auto each_sequence = [&](const auto& look) {
    checks.first_block = 0;
    for (std::int64_t s = 0; s < known_sequences(args); ++s) {
      checks.known = known_sequence(args, s);
      checks.sequence = static_cast<int>(s);
      look();
      checks.first_block += block_count(checks.known.Tq, checks.lists.block_rows);
    }
  };
  each_sequence([&] {
    if (is_batch(args)) look_at<index_stage::batch>(checks, launch);
    look_at<index_stage::cache>(checks, launch);
  });
  if (lists) each_sequence([&] { look_at<index_stage::lists>(checks, launch); });
  return {report{}, launch.error()};
}

}}}  // namespace skim::v0_2::cuda
