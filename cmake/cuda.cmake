# CUDA as a language, with nvcc from CUDACXX, the PATH, or PyPI's cuda-toolkit[nvcc] in .venv; the run-time
# as the target nibble_cudart. CMAKE_CUDA_ARCHITECTURES: the GPU of this machine, else Hopper.
file(GLOB pypi_nvcc "${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/nvidia/cu13/bin/nvcc")
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX} AND pypi_nvcc)
  set(CMAKE_CUDA_COMPILER ${pypi_nvcc})
endif()
if(NOT CMAKE_CUDA_ARCHITECTURES)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                  OUTPUT_VARIABLE capability ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  string(REGEX MATCH "[0-9]+\\.[0-9]+" capability "${capability}")
  string(REPLACE "." "" capability "${capability}")
  if(NOT capability)
    set(capability 90)
  endif()
  set(CMAKE_CUDA_ARCHITECTURES ${capability})
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
enable_language(CUDA)

get_filename_component(cuda_root "${CMAKE_CUDA_COMPILER}" DIRECTORY)
get_filename_component(cuda_root "${cuda_root}" DIRECTORY)
find_path(cuda_include cuda_runtime_api.h
          HINTS ${cuda_root}/include ${cuda_root}/targets/x86_64-linux/include REQUIRED)
find_library(cudart NAMES cudart libcudart.so.13
             HINTS ${cuda_root}/lib ${cuda_root}/lib64 ${cuda_root}/targets/x86_64-linux/lib REQUIRED)
add_library(nibble_cudart INTERFACE)
target_include_directories(nibble_cudart SYSTEM INTERFACE ${cuda_include})
target_link_libraries(nibble_cudart INTERFACE ${cudart})

# A target that knows of CUDA. The others compile as they do without it, so that both builds share a
# compiler cache.
function(nibble_use_cuda target)
  target_compile_definitions(${target} PRIVATE NIBBLE_CUDA=1)
  target_link_libraries(${target} PRIVATE nibble_cudart)
endfunction()

# nibble_format_kernels(library): adds the kernels to quant/format's library, as objects that can be built alone
# (nibble_kernels). Each format in formats.def has a source, whose header is named after it, so that they compile side
# by side and a changed format compiles alone.
function(nibble_format_kernels library)
  set(folder quant/format)
  add_library(nibble_kernels OBJECT ${folder}/kernels.cu)
  target_include_directories(nibble_kernels PRIVATE ${PROJECT_SOURCE_DIR})
  nibble_use_cuda(nibble_kernels)
  # One rounding per operation, as on the CPU; numbers (std::numeric_limits) from the same headers as the CPU's code.
  target_compile_options(nibble_kernels PRIVATE -fmad=false -Xcompiler=-ffp-contract=off --expt-relaxed-constexpr)
  target_link_libraries(${library} PRIVATE nibble_kernels)
  set_source_files_properties(${folder}/kernels_absent.cc PROPERTIES HEADER_FILE_ONLY ON)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${folder}/formats.def)
  file(STRINGS ${folder}/formats.def rows REGEX "^NIBBLE_[A-Z_]+\\(")
  foreach(row ${rows})
    string(REGEX REPLACE "^NIBBLE_[A-Z_]+\\((.*)\\)" "\\1" format "${row}")
    set(instance "struct nibble::FormatKernels<nibble::${format}>")
    if(row MATCHES DECODE_ONLY)
      set(instance "void nibble::FormatKernels<nibble::${format}>::decode(
    const std::byte*, void*, nibble::DeviceFloat, int64_t, void*)")
    endif()
    string(TOLOWER ${format} name)
    set(source ${PROJECT_BINARY_DIR}/kernels/${name}.cu)
    file(CONFIGURE OUTPUT ${source} CONTENT "\
#include \"${folder}/${name}.h\"
#include \"${folder}/format_kernels.cuh\"
template ${instance};
")
    target_sources(nibble_kernels PRIVATE ${source})
  endforeach()
endfunction()
