// C names for plans, for tests/interop/test_mix.py to call by ctypes: a process for each of its
// thousands of plans would take an hour.
#include <string>

#include "base/error.h"
#include "quant/mix/file_type.h"
#include "quant/mix/plan.h"

extern "C" {

/// The file type's number, or -1 for a name or number that none has.
int nibble_file_type(const char* name) {
  const nibble::FileTypeInfo* info = nibble::find_file_type(name);
  return info ? static_cast<int>(info->type) : -1;
}

/// "tensor type" in lines, or "error: " and what is wrong; good until this thread's next call.
const char* nibble_plan(const char* path, const char* type, bool has_imatrix, bool pure) {
  thread_local std::string result;
  nibble::PlanOptions options;
  options.type_name = type;
  options.has_imatrix = has_imatrix;
  options.pure = pure;
  options.allow_requantize = true;
  try {
    const nibble::Plan plan = nibble::make_plan(nibble::GgufFile::open(path), options);
    result.clear();
    for (const nibble::PlanEntry& entry : plan.entries)
      result += nibble::concat(entry.tensor, ' ', nibble::type_name(entry.target), '\n');
  } catch (const nibble::Error& error) {
    result = nibble::concat("error: ", error.what());
  }
  return result.c_str();
}

}  // extern "C"
