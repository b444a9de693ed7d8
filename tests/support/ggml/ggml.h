/* SPDX-License-Identifier: Apache-2.0 */
/* What interop/ggml.hpp uses of ggml's header, for tests of it on machines without ggml. Names and numbers are ggml's
 * interface; `./tests/run --llama` tests against the real one. */
#pragma once

#include <cstddef>
#include <cstdint>

#define GGML_MAX_DIMS 4
#define GGML_MAX_SRC 10
#define GGML_N_TASKS_MAX (-1)

enum ggml_type {
  GGML_TYPE_F32 = 0,
  GGML_TYPE_F16 = 1,
  GGML_TYPE_Q4_0 = 2,
  GGML_TYPE_Q8_0 = 8,
  GGML_TYPE_I32 = 26,
  GGML_TYPE_BF16 = 30
};
enum ggml_op { GGML_OP_NONE, GGML_OP_FLASH_ATTN_EXT, GGML_OP_CUSTOM };

struct ggml_context;
struct ggml_tensor {
  ggml_type type;
  std::int64_t ne[GGML_MAX_DIMS];
  std::size_t nb[GGML_MAX_DIMS]; /* bytes */
  ggml_op op;
  std::int32_t op_params[16];
  ggml_tensor* src[GGML_MAX_SRC];
  ggml_tensor* view_src;
  void* data;
};

inline std::size_t ggml_type_size(ggml_type type) {
  return type == GGML_TYPE_F32 || type == GGML_TYPE_I32 ? 4
         : type == GGML_TYPE_Q8_0                       ? 34
         : type == GGML_TYPE_Q4_0                       ? 18
                                                        : 2;
}
inline const char* ggml_type_name(ggml_type type) {
  return type == GGML_TYPE_F32    ? "f32"
         : type == GGML_TYPE_F16  ? "f16"
         : type == GGML_TYPE_Q4_0 ? "q4_0"
         : type == GGML_TYPE_Q8_0 ? "q8_0"
         : type == GGML_TYPE_I32  ? "i32"
                                  : "bf16";
}

inline bool ggml_is_quantized(ggml_type type) {
  return type == GGML_TYPE_Q8_0 || type == GGML_TYPE_Q4_0;
}
inline std::int64_t ggml_blck_size(ggml_type type) {
  return ggml_is_quantized(type) ? 32 : 1;
}

typedef void (*ggml_to_float_t)(const void* x, float* y, std::int64_t k);
struct ggml_type_traits {
  ggml_to_float_t to_float;
};
const ggml_type_traits* ggml_get_type_traits(ggml_type type); /* the test's own */

typedef void (*ggml_custom_op_t)(ggml_tensor* dst, int ith, int nth, void* userdata);
ggml_tensor* ggml_custom_4d(ggml_context* graph, ggml_type type, std::int64_t ne0, std::int64_t ne1, std::int64_t ne2,
                            std::int64_t ne3, ggml_tensor** args, int n_args, ggml_custom_op_t fun, int n_tasks,
                            void* userdata); /* the test's own: keeps `fun` and `userdata` where it can call them */
