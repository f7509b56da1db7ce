# The CUDA toolkit, and kvstore_cuda_library() for device code.
#
#   KVSTORE_CUDA                 AUTO (where nvcc is found), ON (or refuse), OFF
#   KVSTORE_CUDA_ARCHITECTURES   as CMAKE_CUDA_ARCHITECTURES; PTX of the first lets newer devices run, too
#
# KVSTORE_HAS_CUDA says what came out. A program built with CUDA runs on machines without a driver: the CUDA
# runtime is linked statically, and libcuda is opened at run time (transfer/cuda/loaded_driver.cc).

set(KVSTORE_CUDA AUTO CACHE STRING "CUDA back-ends: AUTO (where nvcc is found), ON or OFF")
set_property(CACHE KVSTORE_CUDA PROPERTY STRINGS AUTO ON OFF)
set(KVSTORE_CUDA_ARCHITECTURES "80;90a-real" CACHE STRING "Device architectures to build for")
set(KVSTORE_HAS_CUDA OFF)

# Why there is no CUDA; empty if there is.
function(kvstore_find_cuda reason)
  set(${reason} "" PARENT_SCOPE)
  find_program(KVSTORE_NVCC nvcc HINTS ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(NOT KVSTORE_NVCC)
    set(${reason} "nvcc was not found (KVSTORE_NVCC names it)" PARENT_SCOPE)
    return()
  endif()
  set(CMAKE_CUDA_COMPILER ${KVSTORE_NVCC})
  find_package(CUDAToolkit 13.0 QUIET)
  if(NOT CUDAToolkit_FOUND)
    set(${reason} "${KVSTORE_NVCC} is not of CUDA 13.0 or newer" PARENT_SCOPE)
    return()
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(${reason} "${KVSTORE_NVCC} does not work with the compiler of this build" PARENT_SCOPE)
  endif()
endfunction()

if(KVSTORE_CUDA STREQUAL "AUTO" AND KVSTORE_SANITIZE)
  message(STATUS "CUDA: off in a sanitizer build (KVSTORE_CUDA=ON overrides)")
elseif(KVSTORE_CUDA STREQUAL "AUTO" OR KVSTORE_CUDA)
  kvstore_find_cuda(reason)
  if(NOT reason)
    set(CMAKE_CUDA_COMPILER ${KVSTORE_NVCC})
    set(CMAKE_CUDA_ARCHITECTURES ${KVSTORE_CUDA_ARCHITECTURES})
    set(CMAKE_CUDA_RUNTIME_LIBRARY None)  # kvstore_cuda_library() names it
    enable_language(CUDA)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know it for nvcc
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    endif()
    if(CCACHE_PROGRAM)
      set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
    endif()
    find_package(CUDAToolkit 13.0 REQUIRED)
    set(KVSTORE_HAS_CUDA ON)
    message(STATUS "CUDA: ${KVSTORE_NVCC} ${CMAKE_CUDA_COMPILER_VERSION} for ${KVSTORE_CUDA_ARCHITECTURES}")
  elseif(KVSTORE_CUDA STREQUAL "AUTO")
    message(STATUS "CUDA: ${reason}; the build has no CUDA back-ends")
  else()
    message(FATAL_ERROR "KVSTORE_CUDA=${KVSTORE_CUDA}, but ${reason}")
  endif()
endif()

# Device code and its launchers: raw pointers in, cudaError_t out. Only tiers/gpu, transfer/cuda, the engine's CUDA
# back-end and tests link it.
function(kvstore_cuda_library)
  cmake_parse_arguments(ARG "" "NAME" "SOURCES;HEADERS" ${ARGN})
  add_library(${ARG_NAME} STATIC ${ARG_SOURCES})
  target_include_directories(${ARG_NAME} PUBLIC ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/..)
  target_compile_options(${ARG_NAME} PRIVATE -Xcompiler=-Wall,-Wextra --Werror=all-warnings -lineinfo)
  target_link_libraries(${ARG_NAME} PUBLIC CUDA::cudart_static)
  target_sources(${ARG_NAME} PUBLIC FILE_SET HEADERS BASE_DIRS ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/.. FILES ${ARG_HEADERS})
endfunction()
