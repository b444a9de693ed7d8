// SPDX-License-Identifier: Apache-2.0
/// \file How a kernel multiplies stored elements. A policy, because results differ between the two.
#pragma once

namespace skim { inline namespace v0_2 { namespace accumulate {

/// Widens every element to f32 and uses fused multiply-add where the processor has it. The default: the same
/// numerics for every storage type and machine.
struct widen_fma {};

/// Rounds queries and softmax weights to bf16, numbers of 8 bits after their scales too, and multiplies pairs (AVX512_BF16
/// `vdpbf16ps`, subnormals as zero). Storage of bf16 and 8 bits only; other storage, processors without the instruction, and
/// up to eight rows of a KV head (generation) run `widen_fma`. NMSE <= 5e-5 on standard normal data; queries that are bf16
/// already stay exact, for others it grows with the square of the logits once their deviation passes 2.
struct dot_pairs {};

/// As `dot_pairs` in numbers, with the matrix tiles of Intel AMX (TDPBF16PS). For the FFN; attention, storage other than
/// bf16 and 8 bits, and units compiled without AMX run as `dot_pairs` does there. The operating system hands out tile
/// registers to processes that ask: take the value from `cpu::request_amx()`.
struct amx {
  bool granted = false;
};

}}}  // namespace skim::v0_2::accumulate
