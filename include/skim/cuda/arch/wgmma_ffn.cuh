// SPDX-License-Identifier: Apache-2.0
/// \file The wide matrix products of a warpgroup that an FFN takes, both factors from shared memory.
#pragma once

#include <skim/cuda/arch/wgmma.cuh>

namespace skim { inline namespace v0_2 { namespace cuda { namespace detail {

#if SKIM_CUDA_SM90

// clang-format off: lists of registers
#define SKIM_SUMS_8(d, i)                                                                                     \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define SKIM_SUMS_56(d, i)                                                                                          \
  SKIM_SUMS_8(d, i), SKIM_SUMS_8(d, i + 8), SKIM_SUMS_8(d, i + 16), SKIM_SUMS_8(d, i + 24), SKIM_SUMS_8(d, i + 32), \
      SKIM_SUMS_8(d, i + 40), SKIM_SUMS_8(d, i + 48)
#define SKIM_REGISTERS_56                                                                    \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"  \
  "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45," \
  "%46,%47,%48,%49,%50,%51,%52,%53,%54,%55}"
#define SKIM_REGISTERS_64                                                                    \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"  \
  "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45," \
  "%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"
#define SKIM_REGISTERS_112                                                                     \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"    \
  "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,"   \
  "%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,"   \
  "%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,"   \
  "%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109," \
  "%110,%111}"
#define SKIM_PRODUCT(name, shape, registers, a, b, keep, by_terms)                                           \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " keep ", 0;\nwgmma.mma_async.sync.aligned." shape ".f32." name "." name \
  " " registers ", " a ", " b ", p, 1, 1, 0, " by_terms ";\n}"

/// d = a [64, 16] b, added to d if `keep`: of b a column in each row, or by terms a row of columns for each.
template <class T>
struct ffn_product;

#define SKIM_FFN_PRODUCT(T, name)                                                                           \
  template <>                                                                                               \
  struct ffn_product<T> {                                                                                   \
    static SKIM_DEVICE void multiply(float (&d)[56], std::uint64_t a, std::uint64_t b, int keep) {          \
      asm volatile(SKIM_PRODUCT(name, "m64n112k16", SKIM_REGISTERS_56, "%56", "%57", "%58", "0")            \
                   : SKIM_SUMS_56(d, 0)                                                                     \
                   : "l"(a), "l"(b), "r"(keep));                                                            \
    }                                                                                                       \
    static SKIM_DEVICE void multiply(float (&d)[112], std::uint64_t a, std::uint64_t b, int keep) {         \
      asm volatile(SKIM_PRODUCT(name, "m64n224k16", SKIM_REGISTERS_112, "%112", "%113", "%114", "0")        \
                   : SKIM_SUMS_56(d, 0), SKIM_SUMS_56(d, 56)                                                \
                   : "l"(a), "l"(b), "r"(keep));                                                            \
    }                                                                                                       \
    static SKIM_DEVICE void multiply_by_terms(float (&d)[64], std::uint64_t a, std::uint64_t b, int keep) { \
      asm volatile(SKIM_PRODUCT(name, "m64n128k16", SKIM_REGISTERS_64, "%64", "%65", "%66", "1")            \
                   : SKIM_SUMS_56(d, 0), SKIM_SUMS_8(d, 56)                                                 \
                   : "l"(a), "l"(b), "r"(keep));                                                            \
    }                                                                                                       \
  };
SKIM_FFN_PRODUCT(bf16, "bf16")
SKIM_FFN_PRODUCT(f16, "f16")
// clang-format on
#undef SKIM_FFN_PRODUCT
#undef SKIM_PRODUCT
#undef SKIM_REGISTERS_112
#undef SKIM_REGISTERS_64
#undef SKIM_REGISTERS_56
#undef SKIM_SUMS_56
#undef SKIM_SUMS_8

#endif  // SKIM_CUDA_SM90

}}}}  // namespace skim::v0_2::cuda::detail
