# The program nibble, which loads no LibTorch, and beside it nibble-torch, which has every recipe: nibble goes on as
# nibble-torch where recipes.def says so (recipes/without_torch.cc).
find_package(cxxopts REQUIRED)
file(GLOB recipe_sources CONFIGURE_DEPENDS recipes/*.cc)
file(STRINGS recipes/recipes.def torch_recipes REGEX "^NIBBLE_TORCH_")
list(TRANSFORM torch_recipes REPLACE "^NIBBLE_TORCH_[A-Z]+\\(([a-z_]+).*" "${PROJECT_SOURCE_DIR}/recipes/\\1.cc")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS recipes/recipes.def)
set(without_torch ${PROJECT_SOURCE_DIR}/recipes/without_torch.cc)
list(REMOVE_ITEM recipe_sources ${torch_recipes} ${without_torch})

add_library(nibble_recipes OBJECT ${recipe_sources})
# Without std::regex, which is half of a recipe's compile time, cxxopts parses the same.
target_compile_definitions(nibble_recipes PUBLIC CXXOPTS_NO_REGEX)
target_link_libraries(nibble_recipes PUBLIC nibble_verify nibble_model_hf nibble_model_chat nibble_quant_mix cxxopts::cxxopts)
add_executable(nibble ${without_torch})
target_link_libraries(nibble PRIVATE nibble_recipes)

if(NIBBLE_TORCH)
  add_executable(nibble_with_torch ${torch_recipes})
  set_target_properties(nibble_with_torch PROPERTIES OUTPUT_NAME nibble-torch)
  target_link_libraries(nibble_with_torch PRIVATE nibble_recipes nibble_configs)
  target_precompile_headers(nibble_with_torch REUSE_FROM nibble_torch_pch)
  add_dependencies(nibble nibble_with_torch)
endif()
