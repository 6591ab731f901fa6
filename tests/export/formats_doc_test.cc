// docs/formats.md's table against the code: every number, every format.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>
#include <set>
#include <sstream>

#include "base/error.h"
#include "base/float16.h"
#include "io/atomic_file.h"
#include "quant/format/registry.h"

namespace nibble {
namespace {

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, separator);) {
    const size_t first = part.find_first_not_of(' '), last = part.find_last_not_of(' ');
    parts.push_back(first == std::string::npos ? "" : part.substr(first, last - first + 1));
  }
  return parts;
}

using Row = std::map<std::string, std::string>;  // by column

// The first table of the page.
std::vector<Row> read_table() {
  std::istringstream in(read_file(NIBBLE_SOURCE_DIR "/docs/formats.md"));
  std::vector<std::vector<std::string>> lines;
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("| ", 0) == 0)
      lines.push_back(split(line.substr(1), '|'));
    else if (!lines.empty())
      break;
  }
  std::vector<Row> rows;
  for (size_t i = 2; i < lines.size(); ++i) {  // after the header and its rule
    Row row;
    for (size_t column = 0; column < lines[0].size(); ++column)
      row[lines[0][column]] = lines[i].at(column);
    rows.push_back(row);
  }
  return rows;
}

struct Field {
  std::string name;
  int64_t bytes;
};

std::vector<Field> fields_of(const Row& row) {
  std::vector<Field> fields;
  for (const std::string& text : split(row.at("fields of a block, in order"), ',')) {
    const std::vector<std::string> words = split(text, ' ');
    fields.push_back({words.at(0), std::stoll(words.at(1))});
  }
  return fields;
}

// Scales as the table names them: the trained quantities that are not the weights.
std::vector<std::string> scales_of(const Row& row) {
  std::vector<std::string> names = split(row.at("trains"), ',');
  EXPECT_EQ(names.front(), "weights");
  names.erase(names.begin());
  return names;
}

void store(std::vector<std::byte>& block, const std::vector<Field>& fields, const std::string& name,
           float value) {
  int64_t offset = 0;
  for (const Field& field : fields) {
    const uint16_t half = float_to_float16(value);
    if (field.name == name) std::memcpy(block.data() + offset, &half, sizeof half);
    offset += field.bytes;
  }
}

class FormatsDoc : public testing::Test {
 protected:
  const std::vector<Row> rows = read_table();
};

TEST_F(FormatsDoc, HasEveryFormatOnce) {
  std::vector<std::string> documented, built;
  for (const Row& row : rows) documented.push_back(row.at("format"));
  for (const Format& format : formats()) built.emplace_back(format.name);
  EXPECT_EQ(documented, built);
}

TEST_F(FormatsDoc, NumbersAreTheCodes) {
  for (const Row& row : rows) {
    SCOPED_TRACE(row.at("format"));
    const Format* format = find_format(row.at("format"));
    ASSERT_NE(format, nullptr);
    EXPECT_EQ(row.at("GGUF type"), concat(static_cast<uint32_t>(format->type)));
    EXPECT_EQ(row.at("file_type"), concat(format->ftype));
    EXPECT_EQ(row.at("weights"), concat(format->block_size));
    EXPECT_EQ(row.at("bytes"), concat(format->block_bytes));
    EXPECT_EQ(row.at("bits per weight"), concat(format->bits_per_weight()));
    int64_t bytes = 0;
    for (const Field& field : fields_of(row)) bytes += field.bytes;
    EXPECT_EQ(bytes, format->block_bytes);
  }
}

TEST_F(FormatsDoc, ScalesLieWhereItSays) {
  for (const Row& row : rows) {
    SCOPED_TRACE(row.at("format"));
    const Format* format = find_format(row.at("format"));
    ASSERT_NE(format, nullptr);
    const std::vector<std::string> names = scales_of(row);
    ASSERT_EQ(static_cast<int>(names.size()), format->num_scales);
    std::vector<std::byte> block(format->block_bytes);
    for (size_t i = 0; i < names.size(); ++i)
      store(block, fields_of(row), names[i], 2.0f + static_cast<float>(i));
    std::vector<float> scales(names.size());
    format->scales_of(block.data(), scales.data(), 1);
    for (size_t i = 0; i < names.size(); ++i)
      EXPECT_EQ(scales[i], 2.0f + static_cast<float>(i)) << names[i];
  }
}

// Random codes under d = 1 (and m = 100, to see that it is added): the decoded weights are the q's.
TEST_F(FormatsDoc, LevelsAreTheOnesThatDecode) {
  std::mt19937 random(1);
  for (const Row& row : rows) {
    SCOPED_TRACE(row.at("format"));
    const Format* format = find_format(row.at("format"));
    ASSERT_NE(format, nullptr);
    if (row.at("q").empty()) {
      EXPECT_EQ(format->num_scales, 0);
      continue;
    }
    const bool has_offset = row.at("weight") == "d q + m";
    EXPECT_EQ(row.at("weight"), has_offset ? "d q + m" : "d q");
    std::set<float> found;
    std::vector<std::byte> block(format->block_bytes);
    std::vector<float> weights(format->block_size);
    for (int round = 0; round < 1000; ++round) {
      for (std::byte& each : block) each = static_cast<std::byte>(random());
      store(block, fields_of(row), "d", 1.0f);
      store(block, fields_of(row), "m", 100.0f);
      format->decode(block.data(), weights.data(), 1);
      found.insert(weights.begin(), weights.end());
    }
    std::istringstream range(row.at("q"));
    int first, last;
    std::string to;
    ASSERT_TRUE(range >> first >> to >> last);
    std::set<float> wanted;
    for (int q = first; q <= last; ++q)
      wanted.insert(static_cast<float>(q + (has_offset ? 100 : 0)));
    EXPECT_EQ(found, wanted);
  }
}

}  // namespace
}  // namespace nibble
