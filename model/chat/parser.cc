#include "model/chat/parser.h"

#include <algorithm>
#include <initializer_list>

#include "model/chat/expression_parser.h"

namespace nibble::jinja {
namespace {

class Parser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Statements run() {
    Statements statements = parse_until({});
    if (token().kind != TokenKind::kEnd) refuse("'", token().text, "' ends nothing that was begun");
    return statements;
  }

 private:
  /// Up to a block that begins with one of the words, or the end; the block's begin and word are
  /// not taken.
  Statements parse_until(std::initializer_list<std::string_view> words) {
    const Level level(*this);
    Statements statements;
    for (;;) {
      if (token().kind == TokenKind::kEnd) {
        if (words.size() > 0) refuse("'{% ", *(words.end() - 1), " %}' is missing");
        return statements;
      }
      if (token().kind == TokenKind::kText) {
        auto text = make<Text>();
        text->text = take().text;
        statements.push_back(std::move(text));
      } else if (token().kind == TokenKind::kVariableBegin) {
        take();
        auto print = make<Print>();
        print->value = parse_tuple();
        expect(TokenKind::kVariableEnd, "'}}'");
        statements.push_back(std::move(print));
      } else {
        const std::string word = token(1).text;
        if (std::find(words.begin(), words.end(), word) != words.end()) return statements;
        take();
        if (word.starts_with("end") || word == "else" || word == "elif")
          refuse("'", word, "' belongs to nothing here");
        statements.push_back(parse_block());
      }
    }
  }
  /// {% word %}
  void expect_end(std::string_view word) {
    expect(TokenKind::kBlockBegin, "'{%'");
    if (!skip_word(word)) refuse("wants '", word, "', found ", describe());
    expect_block_end();
  }

  std::unique_ptr<Statement> parse_block() {
    if (sees_word("if")) return parse_if();
    if (sees_word("for")) return parse_for();
    if (sees_word("set")) return parse_set();
    if (sees_word("macro")) return parse_macro();
    if (sees_word("generation")) return parse_generation();
    if (sees_word("break") || sees_word("continue")) return parse_jump();
    refuse("a '", token().text, "' block is not known to nibble's template engine");
  }

  std::unique_ptr<Statement> parse_if() {
    auto node = make<If>();
    take();
    node->condition = parse_tuple();
    expect_block_end();
    node->then = parse_until({"elif", "else", "endif"});
    if (sees(TokenKind::kName, "elif", 1)) {
      const Level level(*this);
      take();
      node->otherwise.push_back(parse_if());
      return node;
    }
    if (sees(TokenKind::kName, "else", 1)) {
      expect_end("else");
      node->otherwise = parse_until({"endif"});
    }
    expect_end("endif");
    return node;
  }

  std::vector<std::string> parse_targets() {
    const bool bracket = skip_operator("(");
    std::vector<std::string> names = {expect_name()};
    while (skip_operator(",")) names.push_back(expect_name());
    if (bracket) expect_operator(")");
    return names;
  }

  std::unique_ptr<Statement> parse_for() {
    auto node = make<For>();
    take();
    node->targets = parse_targets();
    if (!skip_word("in")) refuse("wants 'in', found ", describe());
    node->items = parse_tuple(/*with_conditional=*/false);
    if (skip_word("if")) node->condition = parse_expression();
    if (sees_word("recursive")) refuse("recursive loops are not known to nibble's template engine");
    expect_block_end();
    node->body = parse_until({"else", "endfor"});
    if (sees(TokenKind::kName, "else", 1)) {
      expect_end("else");
      node->otherwise = parse_until({"endfor"});
    }
    expect_end("endfor");
    return node;
  }

  std::unique_ptr<Statement> parse_set() {
    auto node = make<Set>();
    take();
    node->targets = parse_targets();
    if (skip_operator(".")) node->attribute = expect_name();
    if (skip_operator("=")) {
      node->value = parse_tuple();
      expect_block_end();
      return node;
    }
    if (node->targets.size() > 1 || !node->attribute.empty())
      refuse("wants '=', found ", describe());
    expect_block_end();
    node->body = parse_until({"endset"});
    expect_end("endset");
    return node;
  }

  std::unique_ptr<Statement> parse_macro() {
    auto node = make<Macro>();
    take();
    node->name = expect_name();
    expect_operator("(");
    while (!skip_operator(")")) {
      if (!node->parameters.empty()) expect_operator(",");
      Parameter parameter{expect_name(), nullptr};
      if (skip_operator("=")) parameter.otherwise = parse_expression();
      node->parameters.push_back(std::move(parameter));
    }
    expect_block_end();
    node->body = parse_until({"endmacro"});
    expect_end("endmacro");
    return node;
  }

  std::unique_ptr<Statement> parse_generation() {
    auto node = make<Group>();
    take();
    expect_block_end();
    node->body = parse_until({"endgeneration"});
    expect_end("endgeneration");
    return node;
  }

  std::unique_ptr<Statement> parse_jump() {
    auto node = make<Jump>();
    node->flow = take().text == "break" ? Flow::kBreak : Flow::kContinue;
    expect_block_end();
    return node;
  }
};

}  // namespace

Statements parse(std::string_view source) { return Parser(tokenize(source)).run(); }

}  // namespace nibble::jinja
