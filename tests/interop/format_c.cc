// C names for the registry's row functions, for tests/interop/test_formats.py to call by ctypes. A
// type is GGUF's number of it.
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "quant/format/registry.h"
#include "quant/format/rows.h"

namespace {

const nibble::Format& format_of(uint32_t type) {
  return nibble::require_decoder(static_cast<nibble::GgmlType>(type));
}

}  // namespace

extern "C" {

int64_t nibble_num_formats() { return static_cast<int64_t>(nibble::decoders().size()); }

/// Writes type, block size, block bytes, number of scales and ftype of format number `index`, and
/// whether it is encoded too.
void nibble_format_info(int64_t index, int64_t* info) {
  const nibble::Format& format = nibble::decoders()[index];
  info[0] = static_cast<int64_t>(format.type);
  info[1] = format.block_size;
  info[2] = format.block_bytes;
  info[3] = format.num_scales;
  info[4] = format.ftype;
  info[5] = format.encode != nullptr;
}

const char* nibble_format_name(int64_t index) { return nibble::decoders()[index].name.data(); }

void nibble_decode(uint32_t type, const std::byte* blocks, float* out, int64_t num_blocks) {
  format_of(type).decode(blocks, out, num_blocks);
}

/// Rows of `row_length`, all with the same importance (or nullptr), as encode_tensor does. Returns
/// "" or what is wrong, good until this thread's next call.
const char* nibble_encode(uint32_t type, const float* weights, const float* importance,
                          std::byte* blocks, int64_t num_rows, int64_t row_length, int method) {
  thread_local std::string message;
  message.clear();
  try {
    const std::span<const float> row_importance =
        importance ? std::span(importance, row_length) : std::span<const float>();
    const std::vector<std::byte> bytes = nibble::encode_tensor(
        static_cast<nibble::GgmlType>(type), std::span(weights, num_rows * row_length), row_length,
        row_importance, static_cast<nibble::EncodeMethod>(method));
    std::memcpy(blocks, bytes.data(), bytes.size());
  } catch (const nibble::Error& error) {
    message = error.what();
  }
  return message.c_str();
}

}  // extern "C"
