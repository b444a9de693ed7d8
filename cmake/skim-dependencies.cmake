# SPDX-License-Identifier: Apache-2.0
# What skim needs from outside. The build tree and the installed package both read this file.

# component -> the package CMake looks for, its target, the Debian package
set(skim_components tbb eigen cuda)
set(skim_tbb_dependency TBB TBB::tbb libtbb-dev)
set(skim_eigen_dependency Eigen3 Eigen3::Eigen libeigen3-dev)

# Finds `package` with its `target`; `missing` is empty, or a sentence that says what to install.
function(skim_find package target debian_package missing)
  if(NOT TARGET ${target})
    # A project that adds skim as a subdirectory links our targets from its own directory.
    set(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL TRUE)
    find_package(${package} QUIET)
  endif()
  if(TARGET ${target})
    set(${missing} "" PARENT_SCOPE)
  else()
    set(${missing} "skim: ${package} was not found (Debian: apt-get install ${debian_package})" PARENT_SCOPE)
  endif()
endfunction()

# skim::xsimd takes xsimd's include directory only: the target that Debian 12 installs also asks for -lxtl, which no
# package brings. No version is requested because xsimd's version file accepts its own major only.
function(skim_provide_xsimd missing)
  set(${missing} "" PARENT_SCOPE)
  if(TARGET skim::xsimd)
    return()
  endif()
  if(NOT TARGET xsimd AND NOT SKIM_XSIMD_INCLUDE_DIR)  # which may name another than the installed one
    find_package(xsimd QUIET)
  endif()
  if(TARGET xsimd)
    get_target_property(directories xsimd INTERFACE_INCLUDE_DIRECTORIES)
  else()
    # A cross build finds the headers but not the CMake files, which Debian keeps in a folder of the architecture.
    find_path(SKIM_XSIMD_INCLUDE_DIR xsimd/xsimd.hpp DOC "Directory that holds xsimd/xsimd.hpp")
    set(directories ${SKIM_XSIMD_INCLUDE_DIR})
  endif()
  if(NOT directories OR (xsimd_VERSION AND xsimd_VERSION VERSION_LESS 8.1))
    set(${missing} "skim: xsimd 8.1 or later was not found (Debian: apt-get install libxsimd-dev)" PARENT_SCOPE)
    return()
  endif()
  add_library(skim::xsimd INTERFACE IMPORTED GLOBAL)  # imported: its headers are SYSTEM headers
  set_target_properties(skim::xsimd PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${directories}")
endfunction()

# skim::cuda takes the CUDA toolkit, which Debian 12 has too old a one of.
function(skim_provide_cuda missing)
  set(${missing} "" PARENT_SCOPE)
  set(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL TRUE)
  find_package(CUDAToolkit 12 QUIET)
  if(NOT CUDAToolkit_FOUND)
    set(${missing} "skim: CUDA 12 or later was not found (its toolkit: developer.nvidia.com/cuda-downloads)" PARENT_SCOPE)
  elseif(NOT TARGET skim::cuda)
    add_library(skim::cuda INTERFACE IMPORTED GLOBAL)
    set_target_properties(skim::cuda PROPERTIES INTERFACE_LINK_LIBRARIES "skim::skim;CUDA::cudart")
  endif()
endfunction()

# Makes the target skim::<component>; `missing` is empty, or a sentence that says why there is none.
function(skim_provide component missing)
  if(component STREQUAL xsimd)
    skim_provide_xsimd(reason)
  elseif(component STREQUAL cuda)
    skim_provide_cuda(reason)
  elseif(NOT component IN_LIST skim_components)
    list(JOIN skim_components ", " known)
    set(reason "skim: there is no component '${component}' (there are: ${known})")
  else()
    list(GET skim_${component}_dependency 1 target)
    skim_find(${skim_${component}_dependency} reason)
    if(NOT reason AND NOT TARGET skim::${component})
      add_library(skim::${component} INTERFACE IMPORTED GLOBAL)
      set_target_properties(skim::${component} PROPERTIES INTERFACE_LINK_LIBRARIES "skim::skim;${target}")
    endif()
  endif()
  set(${missing} "${reason}" PARENT_SCOPE)
endfunction()
