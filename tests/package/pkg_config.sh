# SPDX-License-Identifier: Apache-2.0
# pkg_config.sh COMPILER PKG_CONFIG_PATH PROGRAM: an outside project without CMake.
set -e
here=$(dirname "$0")
flags=$(PKG_CONFIG_PATH=$2 pkg-config --cflags --libs 'skim >= 0.2')
"$1" -std=c++17 -O2 "$here/main.cpp" "$here/sparse.cpp" $flags -o "$3"
"$3"
