#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes normal_form_table.inc by what Python knows of the Unicode Character Database.

  ./normal_form_table.py >normal_form_table.inc
"""
import textwrap
import unicodedata


def rows():
    for code in range(0x110000):
        parts = unicodedata.decomposition(chr(code)).split()
        if not parts or parts[0].startswith("<"):
            continue
        joined = unicodedata.normalize("NFC", "".join(chr(int(each, 16)) for each in parts)) == chr(code)
        yield " ".join([f"{code:x}"] + [f"{int(each, 16):x}" for each in parts] + ([] if joined or len(parts) == 1 else ["0"]))


def runs():
    found = []
    for code in range(0x110000):
        order = unicodedata.combining(chr(code))
        if order and found and found[-1][1:] == [code - 1, order]:
            found[-1][1] = code
        elif order:
            found.append([code, code, order])
    return [" ".join(f"{number:x}" for number in run) for run in found]


def text(name, comment, lines):
    print(f"\n/// {comment}\nconstexpr const char* {name} =")
    wrapped = textwrap.wrap(" ".join(each + "," for each in lines), 116)
    print("\n".join(f'    "{each} "' for each in wrapped) + ";")


print(f"""// SPDX-License-Identifier: Apache-2.0
// Written by normal_form_table.py from the Unicode Character Database {unicodedata.unidata_version}, which is Unicode, Inc.'s
// (https://www.unicode.org/license.txt). Numbers are hexadecimal.""")
text("parts_of_characters", "A character, and one or two that it consists of; a 0 behind those that are not joined to it.",
     rows())
text("orders_of_marks", "The first and the last character of a run, and the class by which marks are put in order.", runs())
