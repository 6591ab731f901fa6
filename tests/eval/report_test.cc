#include "eval/report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>

#include "eval/report_svg.h"

namespace nibble {
namespace {

ModelFigures figures(const std::string& name, int64_t bytes, double ppl, double kld, double top) {
  ModelFigures m;
  m.name = name;
  m.bytes = bytes;
  m.bpw = 5.05;
  m.ppl = ppl;
  m.mean_kld = kld;
  m.mean_kld_err = kld * 0.02;
  m.p999_kld = kld * 12;
  m.same_top = top;
  return m;
}

/// Made-up figures that exercise every section.
ReportData sample() {
  ReportData data;
  data.model = "Model";
  data.type = "Q4_0";
  data.baseline = "rounded";
  data.trained = "trained";
  data.comparison.base = "Model F32";
  data.comparison.text = "folder/text.txt";
  data.comparison.base_ppl = data.comparison.base_ppl_16bit = 29.25;
  data.comparison.ctx = 512;
  data.comparison.chunks = 8;
  data.comparison.models = {figures("rounded", 91'000'000, 38.1, 0.31, 0.686),
                            figures("trained", 91'000'000, 30.1, 0.0852, 0.83),
                            figures("source", 98'000'000, 29.25, 0, 1)};
  data.comparison.models.push_back(figures("control", 540'000'000, 27.0, 0.2, 0.75));
  data.against_control.emplace();
  data.against_control->base = "control";
  data.against_control->models = {figures("Model F32", 540'000'000, 29.25, 0.19, 0.76),
                                  figures("trained", 91'000'000, 30.1, 0.0321, 0.9)};
  data.matrix = ExportMatrix{
      {"Q4_0", "Q8_0"},
      {{"Model F32", {0.31, 0.002}, {0.01, 0.001}}, {"trained", {0.09, 0.0853}, {0.01, 0.01}}}};
  data.models = {{"rounded", Role::kBaseline, "as rounded"},
                 {"trained", Role::kTrained, "same bytes"},
                 {"source", Role::kSource, ""}};
  for (int step = 0; step <= 40; ++step)
    data.losses.push_back({step, step * 1024, step == 0 ? -1.0 : 0.3 / step + 0.08,
                           step % 10 == 0 ? 0.28 / (step + 1) + 0.08 : -1.0});
  for (int layer = 0; layer < 3; ++layer)
    data.tensor_errors.push_back(
        {"blk." + std::to_string(layer) + ".ffn_up.weight", "Q4_0", 0.08, 0.09});
  data.tensor_errors.push_back({"token_embd.weight", "Q8_0", 0.004, 0.004});
  data.diagnosis.emplace();
  data.diagnosis->step = 40;
  data.diagnosis->tokens = 2048;
  for (int layer = 0; layer < 3; ++layer)
    data.diagnosis->tensors.push_back({"blk." + std::to_string(layer) + ".ffn_up.weight", "Q4_0",
                                       64'000, 6400 * (layer + 1), 0, 640, 2000, 0, 20, 0.01, 0.006,
                                       0.008, 0.004, 0.003});
  data.diagnosis->tensors.push_back(
      {"token_embd.weight", "Q8_0", 32'000, 320, 0, 0, 1000, 0, 0, 0.001, 1e-6, 2e-6, -1, -1});
  data.diagnosis->warnings = {"lower something"};
  BlockSample block;
  block.tensor = "blk.1.ffn_down.weight";
  block.type = "Q4_0";
  for (int i = 0; i < 32; ++i) {
    block.original.push_back(0.01f * static_cast<float>(i - 16));
    block.baseline_codes.push_back((i - 16) / 2);
    block.trained_codes.push_back((i - 16) / 2 + (i % 7 == 0));
    block.baseline.push_back(0.02f * static_cast<float>(block.baseline_codes.back()));
    block.trained.push_back(0.02f * static_cast<float>(block.trained_codes.back()));
  }
  block.baseline_step = block.trained_step = 0.02;
  block.least_code = -8;
  block.most_code = 7;
  data.blocks = {block};
  data.prompts = {
      {"Say", {{"Model F32", "one two"}, {"rounded", "one 2"}, {"trained", "one two"}}}};
  data.run_command = "llama-cli -m out.gguf";
  data.facts = {{"Machine", "a computer"}};
  data.files = {{"trained", "out.gguf", std::string(64, 'a'), 91'000'000}};
  data.config = "name: x\n";
  return data;
}

size_t count(const std::string& text, const std::string& part) {
  size_t times = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++times;
  return times;
}

TEST(ReportVerdict, SaysWhatWasGained) {
  EXPECT_EQ(report_verdict(sample()),
            "Training on the grid recovered 73 % of what Q4_0 rounding lost.");
}

TEST(ReportVerdict, SaysWhenTrainingHarmed) {
  ReportData data = sample();
  data.comparison.models[1].mean_kld = 0.5;
  EXPECT_EQ(report_verdict(data),
            "Training moved the Q4_0 model further from the original, not nearer.");
}

TEST(ReportVerdict, IsSilentAboutWhatTheErrorsHide) {
  ReportData data = sample();
  data.comparison.models[1].mean_kld = 0.305;  // 0.005 below, with errors of 0.006 each
  const std::string undecided =
      "Training on the grid made no clear difference to Q4_0 rounding on this text.";
  EXPECT_EQ(report_verdict(data), undecided);
  // Paired over tokens the same difference can be clear, whichever way round the pair is.
  data.comparison.differences = {{"trained", "rounded", -0.005, 0.001, 0, 0}};
  EXPECT_EQ(report_verdict(data), "Training on the grid recovered 2 % of what Q4_0 rounding lost.");
  data.comparison.differences = {{"rounded", "trained", 0.005, 0.001, 0, 0}};
  EXPECT_EQ(report_verdict(data), "Training on the grid recovered 2 % of what Q4_0 rounding lost.");
  data.comparison.differences = {{"rounded", "trained", 0.005, 0.004, 0, 0}};
  EXPECT_EQ(report_verdict(data), undecided);
}

TEST(ReportVerdict, ComparisonAloneNamesTheNearest) {
  ReportData data = sample();
  data.trained = data.baseline = "";
  EXPECT_EQ(report_verdict(data),
            "source stays nearest to Model F32: mean KL divergence 0 nats per token.");
  data.comparison.models.clear();
  EXPECT_EQ(report_verdict(data), "Nothing was compared.");
}

TEST(Report, HoldsEverySection) {
  const std::string html = report_html(sample());
  for (const char* part : {"All figures",
                           "Quality against size",
                           "Training</h2>",
                           "The same prompt, each model",
                           "Against the same training without quantization",
                           "0.0321",
                           "Trained for one type, exported as another",
                           "--baseline) 60%,",
                           "0.0853",
                           "What training did to the codes",
                           "lower something",
                           "Q4_0 · 3 tensors · 192000 weights",
                           "was 0.00400",
                           "Error of the weights",
                           "One block, before and after",
                           "Run it",
                           "Settings and files",
                           "<data value=\"0.085200\">0.0852</data>",
                           "<data value=\"91000000\">91.0 MB</data>",
                           "as rounded",
                           "llama-cli -m out.gguf",
                           "one <",
                           "73&nbsp;%"})
    EXPECT_NE(html.find(part), std::string::npos) << part;
  EXPECT_EQ(html.find("nan"), std::string::npos);
  EXPECT_EQ(html.find("inf\""), std::string::npos);
}

TEST(Report, LeavesOutSectionsWithoutData) {
  ReportData data;
  data.comparison = sample().comparison;
  const std::string html = report_html(data);
  for (const char* part : {"Training</h2>", "The same prompt", "What training did",
                           "Against the same", "Trained for one", "Error of the weights",
                           "One block", "Run it", "Settings and files", "class=\"tile\""})
    EXPECT_EQ(html.find(part), std::string::npos) << part;
  EXPECT_NE(html.find("All figures"), std::string::npos);
  EXPECT_NE(report_html(ReportData{}).find("Nothing was compared."), std::string::npos);
}

TEST(Report, AsksNothingOfTheNetworkAndRunsNoScript) {
  const std::string html = report_html(sample());
  for (const char* part : {"http:", "https:", "src=", "@import", "url(", "<script", "onload"})
    EXPECT_EQ(html.find(part), std::string::npos) << part;
}

TEST(Report, TagsAreBalanced) {
  const std::string html = report_html(sample());
  for (const char* tag :
       {"section", "table", "tr",      "td",   "th", "svg",  "dl",     "dt",   "dd",     "div",
        "p",       "pre",   "details", "span", "b",  "data", "figure", "main", "header", "text"}) {
    const std::string name = tag;
    EXPECT_EQ(count(html, "<" + name + ">") + count(html, "<" + name + " "),
              count(html, "</" + name + ">"))
        << tag;
  }
}

TEST(Report, TextFromOutsideIsEscapedEverywhere) {
  const std::string attack = "<img src=x onerror=alert(1)>\"'&\xff";
  ReportData data = sample();
  for (std::string* text :
       {&data.model, &data.type, &data.loss_name, &data.run_command, &data.config,
        &data.origin_note, &data.comparison.base, &data.comparison.text})
    *text = attack;
  data.comparison.models[0].name = data.models[0].name = data.baseline = attack;
  data.models[0].note = attack;
  data.comparison.warnings = {attack};
  data.tensor_errors[0].tensor = "blk.0." + attack;
  data.diagnosis->tensors[0].tensor = data.diagnosis->tensors[0].type = attack;
  data.diagnosis->tensors[1].tensor = "blk.0." + attack;
  data.diagnosis->warnings = {attack};
  data.matrix->rows[0].state = data.matrix->types[0] = data.against_control->base = attack;
  data.comparison.models[3].name = attack;
  data.blocks[0].tensor = data.blocks[0].type = attack;
  data.prompts = {{attack, {{attack, attack}, {attack, "x" + attack}}}};
  data.facts = {{attack, attack}};
  data.files = {{attack, attack, attack, 1}};
  const std::string html = report_html(data);
  EXPECT_EQ(html.find("<img"), std::string::npos);
  EXPECT_EQ(html.find("\xff"), std::string::npos);
  EXPECT_NE(html.find("&lt;img src=x onerror=alert(1)&gt;&quot;&#39;&amp;\xef\xbf\xbd"),
            std::string::npos);
}

TEST(Report, OddNumbersLeaveNoBrokenDrawing) {
  ReportData data = sample();
  const double kNan = std::nan("");
  data.comparison.models[0].ppl = std::numeric_limits<double>::infinity();
  data.comparison.models[0].mean_kld = kNan;
  data.comparison.models[1].bytes = data.comparison.models[2].bytes = 91'000'000;
  data.losses = {{0, 0, -1, 0.3}};
  data.tensor_errors = {{"blk.0.ffn_up.weight", "Q4_0", 0, 0}};
  data.diagnosis->tensors[0].weight_error = std::numeric_limits<double>::infinity();
  data.diagnosis->tensors[1].output_error = data.diagnosis->tensors[1].output_error_start = kNan;
  data.diagnosis->tensors.push_back({});
  data.blocks[0].original.assign(32, 0.0f);
  data.blocks[0].baseline.assign(32, 0.0f);
  data.blocks[0].trained.assign(32, 0.0f);
  EXPECT_NE(report_verdict(data).find("no finite figures"), std::string::npos);
  const std::string html = report_html(data);
  for (const char* bad : {"=\"nan", "=\"inf", "=\"-nan", "=\"-inf", " nan", "-nan"})
    EXPECT_EQ(html.find(bad), std::string::npos) << bad;
}

TEST(Report, ReasonForNoControlIsShown) {
  ReportData data = sample();
  data.against_control.reset();
  data.control_note = "it would be the <original>";
  const std::string html = report_html(data);
  EXPECT_NE(html.find("Against the same training without quantization"), std::string::npos);
  EXPECT_NE(html.find("it would be the &lt;original&gt;"), std::string::npos);
}

TEST(ExportMatrix, TextHasARowAState) {
  EXPECT_EQ(export_matrix_text(*sample().matrix),
            "mean KLD of each state, exported as\n"
            "                 Q4_0        Q8_0\n"
            "Model F32     0.31000     0.00200\n"
            "trained       0.09000     0.08530\n");
}

TEST(Diagnosis, TotalsAndLine) {
  const Diagnosis diagnosis = *sample().diagnosis;
  const TensorDiagnosis all = diagnosis.total();
  EXPECT_EQ(all.weights, 3 * 64'000 + 32'000);
  EXPECT_EQ(all.moved, 6400 * 6 + 320);
  EXPECT_EQ(all.floored, 60);
  EXPECT_NEAR(all.weight_error, (3 * 0.008 + 2e-6) / 4, 1e-15);
  EXPECT_NEAR(all.output_error_start, 0.004, 1e-15) << "of the three that have one";
  EXPECT_EQ(diagnosis_line(diagnosis),
            "since step 0: 17.3 % of the codes moved; clamped weights 0 % -> 0.857 %; groups at "
            "their scale's floor 0 % -> 0.857 %; relative squared error of the weights 0.0045 -> "
            "0.006, of the matmuls' outputs 0.004 -> 0.003");
}

TEST(ReportSvg, Escapes) {
  EXPECT_EQ(escape_html("a<b>&\"'"), "a&lt;b&gt;&amp;&quot;&#39;");
  EXPECT_EQ(escape_html("caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x99\x82"),
            "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x99\x82");
  EXPECT_EQ(escape_html("\xc3"), "\xef\xbf\xbd");
  EXPECT_EQ(escape_html("\xc3("), "\xef\xbf\xbd(");
  EXPECT_EQ(escape_html(std::string("a\0b\x1b", 4)), "a b ");
  EXPECT_EQ(escape_html("a\n\tb"), "a\n\tb");
}

TEST(ReportSvg, ThreeDigits) {
  EXPECT_EQ(three_digits(0.31024), "0.310");
  EXPECT_EQ(three_digits(0.0852), "0.0852");
  EXPECT_EQ(three_digits(29.25), "29.2");
  EXPECT_EQ(three_digits(1234.6), "1235");
  EXPECT_EQ(three_digits(0), "0");
  EXPECT_EQ(three_digits(2.5e-7), "2.5e-07");
  EXPECT_EQ(three_digits(-0.5), "-0.500");
}

TEST(ReportSvg, FixedHasNoNegativeZero) {
  EXPECT_EQ(fixed(-1e-9, 4), "0.0000");
  EXPECT_EQ(fixed(-0.25, 2), "-0.25");
}

TEST(ReportSvg, TicksAreRoundAndInside) {
  EXPECT_EQ((Axis{0, 1, 0, 1}.ticks(4)), (std::vector<double>{0, 0.5, 1}));
  EXPECT_EQ((Axis{0, 72000, 0, 1}.ticks(6)), (std::vector<double>{0, 20000, 40000, 60000}));
  EXPECT_EQ((Axis{0.02, 0.5, 0, 1, true}.ticks(4)).size(), 5u);    // 0.02 0.05 0.1 0.2 0.5
  EXPECT_EQ((Axis{0.0005, 0.5, 0, 1, true}.ticks(4)).size(), 3u);  // 0.001 0.01 0.1
  EXPECT_TRUE((Axis{1, 1, 0, 1}.ticks(4)).empty());
}

TEST(ReportSvg, LabelsAreSpreadAndKeepTheirOrder) {
  std::mt19937 random(7);
  std::uniform_real_distribution<double> place(0, 200);
  for (int round = 0; round < 200; ++round) {
    std::vector<double> wanted(8);
    for (double& y : wanted) y = place(random);
    const std::vector<double> spread = spread_labels(wanted, 17, 0, 200);
    for (size_t i = 0; i < wanted.size(); ++i) {
      EXPECT_GE(spread[i], -1e-9);
      EXPECT_LE(spread[i], 200 + 1e-9);
      for (size_t j = 0; j < wanted.size(); ++j)
        if (wanted[i] < wanted[j]) {
          EXPECT_GE(spread[j] - spread[i], 17 - 1e-9);
        }
    }
  }
  EXPECT_EQ(spread_labels({10, 100}, 17, 0, 200), (std::vector<double>{10, 100}));
}

}  // namespace
}  // namespace nibble
