// SPDX-License-Identifier: Apache-2.0
/// \file A plain call in bf16, as most are on a GPU.
#pragma once

#include "support/attention_case.hpp"

namespace skim_test {

inline attention_case bf16_case(std::int64_t D, std::int64_t Tq, std::int64_t Tk, std::int64_t G) {
  attention_case c;
  c.kv_type = c.q_type = c.out_type = skim::element::bf16;
  c.D = c.Dv = D;
  c.Tq = Tq;
  c.Tk = Tk;
  c.G = G;
  c.Hk = 2;
  return c;
}

}  // namespace skim_test
