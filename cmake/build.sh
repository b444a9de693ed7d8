# SPDX-License-Identifier: Apache-2.0
# Read by examples/run, tests/run and bench/run: installs Debian packages, configures and builds.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
jobs=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
build_packages=(g++ cmake ninja-build libxsimd-dev libtbb-dev libeigen3-dev)

# require_packages NAME...: installs those that are missing; asks for nothing if all are there.
require_packages() {
  if ! command -v dpkg-query >/dev/null; then
    echo "Not a Debian system; what these Debian packages hold must be there: $*" >&2
    return
  fi
  local present name
  local missing=()
  present=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null || true)
  for name in "$@"; do
    grep -qx "installed $name" <<<"$present" || missing+=("$name")
  done
  [[ ${#missing[@]} -gt 0 ]] || return 0

  local as_root=(env DEBIAN_FRONTEND=noninteractive)
  if [[ $(id -u) -ne 0 ]]; then
    if ! command -v sudo >/dev/null; then
      echo "Missing packages; as root, run: apt-get install ${missing[*]}" >&2
      exit 1
    fi
    as_root=(sudo "${as_root[@]}")
  fi
  echo "Installing ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" apt-get install -y -qq -o Dpkg::Use-Pty=0 --no-install-recommends "${missing[@]}" </dev/null
}

# build KIND TARGETS [CMAKE_OPTION...]: configures build/KIND and builds TARGETS, several words; fails if either does.
build() {
  local directory=$root/build/$1 targets
  read -ra targets <<<"$2"
  shift 2
  mkdir -p "$directory"
  if ! cmake -G Ninja -S "$root" -B "$directory" "$@" >"$directory/configure.log" 2>&1; then
    cat "$directory/configure.log"
    return 1
  fi
  cmake --build "$directory" --target "${targets[@]}" --parallel "$jobs" -- -k 0
}
