// libFuzzer over the safetensors reader:
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -I. tests/fuzz/safetensors_fuzz.cc io/*.cc base/error.cc -o safetensors_fuzz
//   ./safetensors_fuzz -max_len=65536 CORPUS_FOLDER
#include "tests/fuzz/inputs.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  nibble::read_safetensors({data, size});
  return 0;
}
