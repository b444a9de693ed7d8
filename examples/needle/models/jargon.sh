#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Writes to FILE a text to calibrate on: the Jargon File 4.4.7, modern English prose in the public domain, 1.4 MB, from
# Debian's package jargon-text. Its lists of words are left out, and each paragraph stands in one line.
# Usage: jargon.sh FILE
set -eu
file=$(realpath "$1")
cd "$(mktemp -d)"
apt-get download jargon-text
dpkg-deb --fsys-tarfile jargon-text_*.deb | tar -xO ./usr/share/doc/jargon-text/jargon.txt.gz | gunzip |
  awk 'BEGIN { RS = ""; ORS = "\n\n" } /^ *:/ { begun = 1 } begun { gsub(/ *\n */, " "); sub(/^ */, ""); print }' >"$file"
rm jargon-text_*.deb
rmdir "$PWD"
