// SPDX-License-Identifier: Apache-2.0
#include "vocabulary.hpp"

namespace needle {

std::string character_of_byte(unsigned char byte) {
  // Those that cannot be seen lie in three runs: 33 to the blank, 34 from 127 on, and 173.
  const int code = byte <= ' '                  ? 256 + byte
                   : byte >= 127 && byte <= 160 ? 256 + 33 + byte - 127
                   : byte == 173                ? 323
                                                : byte;
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 63))};
}

std::string name_of_byte(unsigned char byte) {
  constexpr char digits[] = "0123456789ABCDEF";
  return std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">";
}

}  // namespace needle
