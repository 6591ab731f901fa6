# LibTorch as the target nibble_torch, from Torch_DIR (an unpacked LibTorch: .../share/cmake/Torch) or
# from the wheel in .venv. Not find_package(Torch): its CUDA build stops without a toolkit.
if(Torch_DIR)
  get_filename_component(torch_root "${Torch_DIR}/../../.." ABSOLUTE)
else()
  file(GLOB torch_root "${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch")
endif()
if(NOT EXISTS "${torch_root}/lib/libtorch_cpu.so")
  message(FATAL_ERROR "no LibTorch at '${torch_root}': run scripts/setup, or give -DTorch_DIR="
                      "<libtorch>/share/cmake/Torch")
endif()

add_library(nibble_torch INTERFACE)
target_include_directories(nibble_torch SYSTEM INTERFACE
  ${torch_root}/include ${torch_root}/include/torch/csrc/api/include)
target_link_directories(nibble_torch INTERFACE ${torch_root}/lib)
# The wheel's libraries find each other through their own rpath; the linker must not insist on
# resolving their CUDA symbols, since a system libnccl may be older than the one that comes with it.
target_link_options(nibble_torch INTERFACE -Wl,--allow-shlib-undefined -Wl,-rpath,${torch_root}/lib)
target_link_libraries(nibble_torch INTERFACE torch_cpu c10)
if(NIBBLE_CUDA)
  target_link_libraries(nibble_torch INTERFACE
    -Wl,--no-as-needed torch_cuda c10_cuda -Wl,--as-needed)
endif()

# LibTorch takes 10 s and more in each file: one precompiled header serves every target.
file(WRITE ${PROJECT_BINARY_DIR}/torch_pch.cc "")
add_library(nibble_torch_pch OBJECT ${PROJECT_BINARY_DIR}/torch_pch.cc)
target_link_libraries(nibble_torch_pch PUBLIC nibble_torch nibble_quant_mix)
target_precompile_headers(nibble_torch_pch PUBLIC ${PROJECT_SOURCE_DIR}/quant/fake/torch.h)
