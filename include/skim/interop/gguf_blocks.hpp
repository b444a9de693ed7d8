// SPDX-License-Identifier: Apache-2.0
/// \file Rows of a GGUF file's tensors as f32 numbers: each type's blocks, as ggml lays them out.
#pragma once

#include <skim/interop/gguf.hpp>
#include <skim/types.hpp>

namespace skim { inline namespace v0_2 { namespace gguf {

namespace detail {

using byte = unsigned char;

/// At any address.
inline float number_at(const byte* at, element type) {
  alignas(float) byte aligned[sizeof(float)] = {};
  std::memcpy(aligned, at, static_cast<std::size_t>(bytes_of(type, 1)));
  return load_element(aligned, type, 0);
}
inline float half_at(const byte* at) {
  return number_at(at, element::f16);
}
inline int low(byte both) {
  return both & 15;
}
inline int high(byte both) {
  return both >> 4;
}
inline int bit(const byte* bits, int i) {
  return bits[i / 8] >> (i % 8) & 1;
}

/// Blocks of 32 with 4 or 5 bits each, the lower half in the bytes' lower halves; `minimum`: a number of the block's own, in
/// place of `middle`, stands for a code of 0.
inline void widen_32(const byte* block, int bits, bool minimum, float* out) {
  const float scale = half_at(block), least = minimum ? half_at(block + 2) : 0;
  const byte* const fifth = block + (minimum ? 4 : 2);
  const byte* const codes = fifth + (bits == 5 ? 4 : 0);
  const int middle = minimum ? 0 : 1 << (bits - 1);
  for (int i = 0; i < 16; ++i) {
    const int a = low(codes[i]) | (bits == 5 ? bit(fifth, i) << 4 : 0);
    const int b = high(codes[i]) | (bits == 5 ? bit(fifth, i + 16) << 4 : 0);
    out[i] = static_cast<float>(a - middle) * scale + least;
    out[i + 16] = static_cast<float>(b - middle) * scale + least;
  }
}

inline void widen_q8_0(const byte* block, float* out) {
  const float scale = half_at(block);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(static_cast<signed char>(block[2 + i])) * scale;
}

/// Part `i` of 8 of a block of 256: its scale and minimum, 6 bits each.
inline void scales_of_part(const byte* packed, int i, int& scale, int& least) {
  if (i < 4) {
    scale = packed[i] & 63;
    least = packed[i + 4] & 63;
  } else {
    scale = low(packed[i + 4]) | (packed[i - 4] >> 6) << 4;
    least = high(packed[i + 4]) | (packed[i] >> 6) << 4;
  }
}

/// Blocks of 256 with 4 or 5 bits each, in 8 parts: two of them share 32 bytes, the first has the lower halves.
inline void widen_256(const byte* block, int bits, float* out) {
  const float scale = half_at(block), least = half_at(block + 2);
  const byte* const packed = block + 4;
  const byte* const fifth = packed + 12;
  const byte* const codes = fifth + (bits == 5 ? 32 : 0);
  for (int part = 0; part < 8; ++part) {
    int of_scale = 0, of_least = 0;
    scales_of_part(packed, part, of_scale, of_least);
    const float step = scale * static_cast<float>(of_scale), from = least * static_cast<float>(of_least);
    for (int i = 0; i < 32; ++i) {
      const byte both = codes[part / 2 * 32 + i];
      const int code = (part % 2 ? high(both) : low(both)) | (bits == 5 ? (fifth[i] >> part & 1) << 4 : 0);
      out[part * 32 + i] = step * static_cast<float>(code) - from;
    }
  }
}

/// Blocks of 256 with 6 bits each, in 16 parts with a scale each.
inline void widen_q6_k(const byte* block, float* out) {
  const float scale = half_at(block + 208);
  for (int half = 0; half < 2; ++half) {
    const byte *lower = block + half * 64, *upper = block + 128 + half * 32;
    const byte* const scales = block + 192 + half * 8;
    for (int i = 0; i < 128; ++i) {
      const int quarter = i / 32, at = i % 32;
      const byte both = lower[at + quarter % 2 * 32];
      const int code = (quarter < 2 ? low(both) : high(both)) | (upper[at] >> (2 * quarter) & 3) << 4;
      const float of_part = static_cast<float>(static_cast<signed char>(scales[i / 16]));
      out[half * 128 + i] = scale * of_part * static_cast<float>(code - 32);
    }
  }
}

using block_widener = void (*)(const byte* block, float* out);

/// What widens a type's blocks, by ggml's number of it; null where nothing here does.
inline block_widener widener_of(std::uint32_t type) {
  switch (type) {
    case 2:
      return [](const byte* block, float* out) { widen_32(block, 4, false, out); };
    case 3:
      return [](const byte* block, float* out) { widen_32(block, 4, true, out); };
    case 6:
      return [](const byte* block, float* out) { widen_32(block, 5, false, out); };
    case 7:
      return [](const byte* block, float* out) { widen_32(block, 5, true, out); };
    case 8:
      return widen_q8_0;
    case 12:
      return [](const byte* block, float* out) { widen_256(block, 4, out); };
    case 13:
      return [](const byte* block, float* out) { widen_256(block, 5, out); };
    case 14:
      return widen_q6_k;
    default:
      return nullptr;
  }
}

}  // namespace detail

/// Whether `widen_rows` knows the type.
inline bool can_widen(const tensor& of) {
  return of.format && (of.format->type != element::none || detail::widener_of(of.type));
}

/// out [count * columns] = rows [first, first + count) of the tensor, all its extents but the last together, as f32: exact for
/// F32, F16 and BF16, else as ggml computes them, to the last bit or two. The tensor is one that `can_widen` takes.
inline void widen_rows(const tensor& of, std::int64_t first, std::int64_t count, float* out) {
  const gguf::format& format = *of.format;
  const std::int64_t blocks = of.shape.back() / format.block_values;
  const detail::byte* block = static_cast<const detail::byte*>(of.data) + first * blocks * format.block_bytes;
  const detail::block_widener widen = detail::widener_of(of.type);
  for (std::int64_t i = 0; i < count * blocks; ++i) {
    if (widen) {
      widen(block, out);
    } else {
      *out = detail::number_at(block, format.type);
    }
    block += format.block_bytes;
    out += format.block_values;
  }
}

}}}  // namespace skim::v0_2::gguf
