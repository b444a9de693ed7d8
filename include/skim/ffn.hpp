// SPDX-License-Identifier: Apache-2.0
/// \file The FFN of blocks of tokens, on all neurons or on a list of them per block: arguments, `check`, `check_indices`,
/// cost.
///
/// Glossary: `M` tokens of the call, `d` the model's width, `f` neurons, `K` neurons computed.
#pragma once

#include <skim/math/activation.hpp>
#include <skim/policy.hpp>
#include <skim/weights.hpp>

namespace skim { inline namespace v0_2 {

/// The rows of x that belong to one prompt.
struct ffn_prompt {
  std::int64_t rows = 0;
  std::int64_t first_block = 0;  ///< number, in the prompt, of its first block in this call; from 0
  bool last = false;             ///< the prompt ends with these rows
  bool decode = false;           ///< the tokens are generated ones: see `neuron_retention::sparse_decode`
};

/// Arguments of one FFN call: one layer, the blocks of one prompt or of several. Plain values and views.
///
///     out = (act(x gate^T) * (x up^T)) down        gated
///     out = act(x up^T) down                       plain, where `gate` is empty
///
/// A neuron is one row of each weight. `down` is therefore stored [f, d], the transpose of what checkpoints hold (see
/// `transpose`): a neuron's three rows are contiguous, and any list of neurons costs what a range does.
///
/// The rows of a prompt fall into blocks of `block_tokens`, of which the last may be shorter. Each block is dense, or
/// computes neurons of its own: see `neuron_retention`. A prompt without rows is one empty block. Blocks do not see each
/// other: a call gives the bits that calls for each block would give in turn.
///
/// Kernels compute in f32. Beyond 3.4e38, where numbers turn into infinities, must not lie: for each sum over d or f the sum
/// of its products' sizes; below 2^-126, where they lose digits, a neuron's value that counts.
struct ffn_args {
  tensor_view<const void, 2> x;     ///< [M, d], any element type: the FFN's input, after the norm
  tensor_view<const void, 2> gate;  ///< [f, d], or empty
  tensor_view<const void, 2> up;    ///< [f, d]
  tensor_view<const void, 2> down;  ///< [f, d]; all weights have one element type
  tensor_view<void, 2> out;         ///< [M, d], any element type; must not overlap any input
  activation act = activation::silu;

  std::int64_t block_tokens = 0;  ///< rows of a block; 0 = all rows of a prompt

  // One prompt:
  std::int64_t first_block = 0;  ///< number, in the prompt, of the call's first block; from 0
  bool last = false;             ///< the prompt ends with this call
  bool decode = false;           ///< the tokens are generated ones

  // Or several, which replace the three above:
  const ffn_prompt* prompts = nullptr;  ///< [prompt_count], host memory: their rows follow each other, M in sum
  std::int64_t prompt_count = 0;
};

SKIM_HD SKIM_INLINE constexpr bool is_gated(const ffn_args& args) {
  return args.gate.data != nullptr || args.gate.extents[0] != 0;
}

SKIM_HD SKIM_INLINE constexpr std::int64_t prompt_count(const ffn_args& args) {
  return args.prompts ? args.prompt_count : 1;
}

SKIM_HD SKIM_INLINE constexpr ffn_prompt prompt_at(const ffn_args& args, std::int64_t p) {
  return args.prompts ? args.prompts[p] : ffn_prompt{args.x.extents[0], args.first_block, args.last, args.decode};
}

namespace detail {

SKIM_HD SKIM_INLINE constexpr std::int64_t blocks_of(const ffn_prompt& prompt, std::int64_t block_tokens) {
  return block_tokens == 0 || prompt.rows == 0 ? 1 : (prompt.rows + block_tokens - 1) / block_tokens;
}

/// Block `b` of a prompt whose first row is `row`, as a call of its own.
SKIM_HD SKIM_INLINE ffn_args block_at(const ffn_args& args, const ffn_prompt& prompt, std::int64_t row,
                                      std::int64_t b) {
  const std::int64_t first = b * args.block_tokens, left = prompt.rows - first;
  const bool ends = args.block_tokens == 0 || left <= args.block_tokens;
  ffn_args block = args;
  block.x = rows(args.x, row + first, ends ? left : args.block_tokens);
  block.out = rows(args.out, row + first, ends ? left : args.block_tokens);
  block.block_tokens = 0;
  block.first_block = prompt.first_block + b;
  block.last = prompt.last && ends;
  block.decode = prompt.decode;
  block.prompts = nullptr;
  block.prompt_count = 0;
  return block;
}

}  // namespace detail

/// Blocks of the call.
SKIM_HD SKIM_INLINE constexpr std::int64_t block_count(const ffn_args& args) {
  std::int64_t blocks = 0;
  for (std::int64_t p = 0; p < prompt_count(args); ++p) {
    blocks += detail::blocks_of(prompt_at(args, p), args.block_tokens);
  }
  return blocks;
}

/// Calls `body(block, index)` for the blocks of the call, each as a call of its own, in the order of their rows.
template <class Body>
SKIM_INLINE void for_each_block(const ffn_args& args, const Body& body) {
  std::int64_t row = 0, index = 0;
  for (std::int64_t p = 0; p < prompt_count(args); ++p) {
    const ffn_prompt prompt = prompt_at(args, p);
    for (std::int64_t b = 0; b < detail::blocks_of(prompt, args.block_tokens); ++b) {
      body(detail::block_at(args, prompt, row, b), index++);
    }
    row += prompt.rows;
  }
}

/// The same for the blocks [first, first + count). O(prompts + count).
template <class Body>
SKIM_INLINE void for_some_blocks(const ffn_args& args, std::int64_t first, std::int64_t count, const Body& body) {
  std::int64_t row = 0, index = 0;
  for (std::int64_t p = 0; p < prompt_count(args) && index < first + count; ++p) {
    const ffn_prompt prompt = prompt_at(args, p);
    const std::int64_t blocks = detail::blocks_of(prompt, args.block_tokens);
    for (std::int64_t b = first > index ? first - index : 0; b < blocks && index + b < first + count; ++b) {
      body(detail::block_at(args, prompt, row, b), index + b);
    }
    index += blocks;
    row += prompt.rows;
  }
}

/// Calls `body(block, index, worker)` for the blocks of the call, on all workers.
template <class Body>
SKIM_INLINE void parallel_for_blocks(const ffn_args& args, executor_ref executor, const Body& body) {
  constexpr std::int64_t most_pieces = 256;  // each walks the prompts before it
  const std::int64_t blocks = block_count(args), piece = (blocks + most_pieces - 1) / most_pieces;
  executor.parallel_for(piece == 0 ? 0 : (blocks + piece - 1) / piece, [&](std::int64_t unit, unsigned worker) {
    for_some_blocks(args, unit * piece, piece,
                    [&](const ffn_args& block, std::int64_t index) { body(block, index, worker); });
  });
}

/// True if a call of one block computes all neurons.
SKIM_HD SKIM_INLINE constexpr bool runs_dense(const neuron_retention& keep, const ffn_args& block) {
  if (keep.neurons(block.up.extents[0]) >= block.up.extents[0]) return true;
  if (block.decode) return !keep.sparse_decode;
  return keep.dense_edges && (block.first_block == 0 || block.last);
}

namespace detail {

inline constexpr std::int64_t largest_block = std::int64_t{1} << 60;  // numbers of blocks are added up

SKIM_LOCAL constexpr report check_prompts(const ffn_args& args) {
  if (report r = check_range("block_tokens", args.block_tokens, 0, largest_width, status::bad_value); !r) return r;
  if (!args.prompts) {
    if (args.prompt_count != 0) return null_fault("prompts");
    return check_range("first_block", args.first_block, 0, largest_block, status::bad_value);
  }
  if (report r = check_array("prompts", args.prompts); !r) return r;
  if (report r = check_range("prompt_count", args.prompt_count, 0, largest_index); !r) return r;
  std::int64_t left = args.x.extents[0];
  for (std::int64_t p = 0; p < args.prompt_count; ++p) {
    const ffn_prompt& prompt = args.prompts[p];
    if (report r = check_range("prompts[p].rows", prompt.rows, 0, left); !r) return r;
    if (report r = check_range("prompts[p].first_block", prompt.first_block, 0, largest_block, status::bad_value); !r) {
      return r;
    }
    left -= prompt.rows;
  }
  if (left == 0) return {};
  return part_fault(status::bad_extent, "x", part::extents, 0, args.x.extents[0], args.x.extents[0] - left,
                    "the prompts' rows in sum,");
}

/// What `check` says of everything but the output: all that choosing neurons needs.
SKIM_LOCAL constexpr report check_ffn_input(const ffn_args& args, pointers given = pointers::required) {
  if (report r = check_tokens(args.x, "x", given); !r) return r;
  if (report r = check_width(args.up, 0, "up"); !r) return r;
  const std::int64_t d = args.x.extents[1], f = args.up.extents[0];
  if (report r = check_matrix(args.up, f, d, "up", given); !r) return r;
  if (report r = check_matrix(args.down, f, d, "down", given); !r) return r;
  if (report r = check_same_type(args.down.type, args.up.type, "down"); !r) return r;
  if (is_gated(args)) {
    if (report r = check_matrix(args.gate, f, d, "gate", given); !r) return r;
    if (report r = check_same_type(args.gate.type, args.up.type, "gate"); !r) return r;
  }
  if (report r = check_enumerator("act", args.act, activation::relu_squared); !r) return r;
  return check_prompts(args);
}

}  // namespace detail

/// Shapes, strides, types and numbers; O(1), O(prompts) for several. Follows no pointer but `prompts`. M may be 0.
SKIM_LOCAL constexpr report check(const ffn_args& args, pointers given = pointers::required) {
  using namespace detail;
  if (report r = check_ffn_input(args, given); !r) return r;
  return check_matrix(args.out, args.x.extents[0], args.x.extents[1], "out", given);
}

namespace detail {

template <class P>
using shape_member = decltype(report{
    std::declval<const P&>().check(std::declval<const ffn_args&>(), pointers::ignored)});

/// What a neuron selector says of a call; of its own tensors before there is memory, where it has such.
template <class Selector>
SKIM_LOCAL constexpr report check_selector(const Selector& selector, const ffn_args& args, pointers given) {
  if constexpr (has<shape_member, Selector>) {
    return selector.check(args, given);
  } else {
    return selector.check(args);
  }
}

/// Whether the neurons of each list ascend within [0, f). Reads the lists.
SKIM_LOCAL constexpr report check_neurons(const index_lists& lists, std::int64_t f) {
  for (std::int64_t row = 0; row < lists.rows; ++row) {
    const std::int64_t count = lists.counts[row];
    if (report r = check_range("lists.counts[r]", count, 0, lists.capacity, status::bad_index); !r) return r;
    std::int64_t least = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t neuron = lists.row(row)[i];
      if (neuron < least) {
        return fault(status::bad_index, "lists.indices[r][i]", neuron, least, "ascending: at least");
      }
      if (neuron >= f) return fault(status::bad_index, "lists.indices[r][i]", neuron, f - 1, "at most");
      least = neuron + 1;
    }
  }
  return {};
}

}  // namespace detail

/// `check`, and whether each block's neurons ascend within [0, f). Reads the lists: host memory.
SKIM_LOCAL report check_indices(const ffn_args& args, const index_lists& lists) {
  if (report r = check(args); !r) return r;
  if (report r = detail::check_room(lists, block_count(args), 0); !r) return r;
  return detail::check_neurons(lists, args.up.extents[0]);
}

/// Computing `neurons` neurons for all rows of the call: weights are read once, x and out once.
SKIM_HD SKIM_INLINE cost_estimate ffn_cost(const ffn_args& args, std::int64_t neurons) {
  const double M = static_cast<double>(args.x.extents[0]), d = static_cast<double>(args.x.extents[1]);
  const double K = static_cast<double>(neurons), weights = is_gated(args) ? 3 : 2;
  const auto row_bytes = [&args](element type) { return static_cast<double>(bytes_of(type, args.x.extents[1])); };
  return {2 * M * d * K * weights,
          K * weights * row_bytes(args.up.type) + M * row_bytes(args.x.type) + M * row_bytes(args.out.type)};
}

}}  // namespace skim::v0_2
