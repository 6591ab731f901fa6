#include "model/chat/parser.h"

#include <algorithm>
#include <charconv>
#include <initializer_list>

#include "base/error.h"
#include "model/chat/lexer.h"

namespace nibble::jinja {
namespace {

/// Of brackets, blocks and operators in one another.
constexpr int kMaxDepth = 200;

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Statements run() {
    Statements statements = parse_until({});
    if (token().kind != TokenKind::kEnd) refuse("'", token().text, "' ends nothing that was begun");
    return statements;
  }

 private:
  /// Counts a level of nesting while it lives.
  class Level {
   public:
    explicit Level(Parser& parser) : parser_(parser) {
      if (++parser_.depth_ > kMaxDepth) parser_.refuse("nested more than ", kMaxDepth, " deep");
    }
    ~Level() { --parser_.depth_; }

   private:
    Parser& parser_;
  };

  const Token& token(size_t ahead = 0) const {
    return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
  }
  Token take() {
    const Token taken = token();
    if (at_ + 1 < tokens_.size()) ++at_;
    return taken;
  }
  template <class... Args>
  [[noreturn]] void refuse(const Args&... args) const {
    fail("line ", token().line, ": ", args...);
  }
  bool sees(TokenKind kind, std::string_view text, size_t ahead = 0) const {
    return token(ahead).kind == kind && token(ahead).text == text;
  }
  bool sees_operator(std::string_view text) const { return sees(TokenKind::kOperator, text); }
  bool sees_word(std::string_view text) const { return sees(TokenKind::kName, text); }
  bool skip_operator(std::string_view text) {
    const bool found = sees_operator(text);
    if (found) take();
    return found;
  }
  bool skip_word(std::string_view text) {
    const bool found = sees_word(text);
    if (found) take();
    return found;
  }
  std::string describe() const {
    switch (token().kind) {
      case TokenKind::kBlockEnd:
      case TokenKind::kVariableEnd:
        return "the end of the tag";
      case TokenKind::kEnd:
        return "the end of the template";
      case TokenKind::kString:
        return "a string";
      default:
        return '\'' + token().text + '\'';
    }
  }
  void expect(TokenKind kind, std::string_view what) {
    if (token().kind != kind) refuse("wants ", what, ", found ", describe());
    take();
  }
  void expect_operator(std::string_view text) {
    if (!skip_operator(text)) refuse("wants '", text, "', found ", describe());
  }
  std::string expect_name() {
    if (token().kind != TokenKind::kName) refuse("wants a name, found ", describe());
    return take().text;
  }
  void expect_block_end() { expect(TokenKind::kBlockEnd, "'%}'"); }

  template <class T>
  std::unique_ptr<T> make() const {
    auto node = std::make_unique<T>();
    node->line = token().line;
    return node;
  }

  // Statements

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

  // Expressions, loosest first

  /// One expression, or several with commas, which are a list.
  ExpressionPointer parse_tuple(bool with_conditional = true) {
    const auto one = [&] { return with_conditional ? parse_expression() : parse_or(); };
    ExpressionPointer first = one();
    if (!sees_operator(",")) return first;
    auto list = make<ListLiteral>();
    list->items.push_back(std::move(first));
    while (skip_operator(","))
      if (!ends_tuple()) list->items.push_back(one());
    return list;
  }
  bool ends_tuple() const {
    return token().kind == TokenKind::kBlockEnd || token().kind == TokenKind::kVariableEnd ||
           sees_operator(")");
  }

  ExpressionPointer parse_expression() {
    const Level level(*this);
    ExpressionPointer value = parse_or();
    for (int links = 0; sees_word("if"); count_link(links)) {
      auto node = make<Conditional>();
      take();
      node->then = std::move(value);
      node->condition = parse_or();
      if (skip_word("else")) node->otherwise = parse_expression();
      value = std::move(node);
    }
    return value;
  }

  ExpressionPointer binary(std::string name, ExpressionPointer left, ExpressionPointer right) {
    auto node = make<Binary>();
    node->name = std::move(name);
    node->left = std::move(left);
    node->right = std::move(right);
    return node;
  }
  /// Operands of one precedence, from the left.
  template <class Next>
  ExpressionPointer parse_chain(std::initializer_list<std::string_view> names, const Next& next) {
    const auto sees_one = [&] {
      return std::any_of(names.begin(), names.end(), [&](std::string_view name) {
        return sees_operator(name) || sees_word(name);
      });
    };
    ExpressionPointer left = next();
    for (int links = 0; sees_one(); count_link(links)) {
      std::string name = take().text;
      left = binary(std::move(name), std::move(left), next());
    }
    return left;
  }
  ExpressionPointer parse_or() {
    return parse_chain({"or"}, [&] { return parse_and(); });
  }
  ExpressionPointer parse_and() {
    return parse_chain({"and"}, [&] { return parse_not(); });
  }
  ExpressionPointer parse_not() {
    const Level level(*this);
    if (!sees_word("not")) return parse_comparison();
    auto node = make<Unary>();
    node->name = take().text;
    node->operand = parse_not();
    return node;
  }

  /// The comparison that comes here, taken; "" where none does.
  std::string take_comparison() {
    for (const std::string_view name : {"==", "!=", "<", "<=", ">", ">="})
      if (skip_operator(name)) return std::string(name);
    if (skip_word("in")) return "in";
    if (!sees_word("not") || !sees(TokenKind::kName, "in", 1)) return "";
    take();
    take();
    return "not in";
  }
  ExpressionPointer parse_comparison() {
    ExpressionPointer first = parse_sum();
    std::string name = take_comparison();
    if (name.empty()) return first;
    auto node = make<Comparison>();
    node->first = std::move(first);
    for (; !name.empty(); name = take_comparison()) node->rest.emplace_back(name, parse_sum());
    return node;
  }

  ExpressionPointer parse_sum() {
    return parse_chain({"+", "-"}, [&] { return parse_concatenation(); });
  }
  ExpressionPointer parse_concatenation() {
    return parse_chain({"~"}, [&] { return parse_product(); });
  }
  ExpressionPointer parse_product() {
    return parse_chain({"*", "/", "//", "%"}, [&] { return parse_power(); });
  }
  ExpressionPointer parse_power() {
    return parse_chain({"**"}, [&] { return parse_unary(true); });
  }
  ExpressionPointer parse_unary(bool with_filters) {
    const Level level(*this);
    ExpressionPointer value;
    if (sees_operator("-") || sees_operator("+")) {
      auto node = make<Unary>();
      node->name = take().text;
      node->operand = parse_unary(false);
      value = std::move(node);
    } else {
      value = parse_primary();
    }
    value = parse_postfix(std::move(value));
    return with_filters ? parse_filters(std::move(value)) : std::move(value);
  }

  ExpressionPointer literal(Value value) {
    auto node = make<Literal>();
    node->value = std::move(value);
    return node;
  }
  ExpressionPointer parse_primary() {
    switch (token().kind) {
      case TokenKind::kName:
        return parse_name();
      case TokenKind::kInteger:
        return literal(parse_integer());
      case TokenKind::kFloat:
        return literal(std::stod(take().text));
      case TokenKind::kString: {
        std::string text;
        while (token().kind == TokenKind::kString) text += take().text;
        return literal(std::move(text));
      }
      default:
        break;
    }
    if (skip_operator("(")) return parse_bracket();
    if (skip_operator("[")) return parse_list();
    if (skip_operator("{")) return parse_dict();
    refuse("wants an expression, found ", describe());
  }
  ExpressionPointer parse_name() {
    const std::string name = token().text;
    if (name == "true" || name == "True") return take(), literal(true);
    if (name == "false" || name == "False") return take(), literal(false);
    if (name == "none" || name == "None") return take(), literal(None{});
    auto node = make<Name>();
    node->name = take().text;
    return node;
  }
  int64_t parse_integer() {
    const std::string text = take().text;
    int64_t value = 0;
    const auto end = std::from_chars(text.data(), text.data() + text.size(), value);
    if (end.ec != std::errc()) refuse("the number ", text, " is too large");
    return value;
  }
  ExpressionPointer parse_bracket() {
    if (skip_operator(")")) return make<ListLiteral>();
    ExpressionPointer value = parse_tuple();
    expect_operator(")");
    return value;
  }
  ExpressionPointer parse_list() {
    auto node = make<ListLiteral>();
    while (!skip_operator("]")) {
      if (!node->items.empty()) expect_operator(",");
      if (!sees_operator("]")) node->items.push_back(parse_expression());
    }
    return node;
  }
  ExpressionPointer parse_dict() {
    auto node = make<DictLiteral>();
    while (!skip_operator("}")) {
      if (!node->entries.empty()) expect_operator(",");
      if (sees_operator("}")) continue;
      ExpressionPointer key = parse_expression();
      expect_operator(":");
      node->entries.emplace_back(std::move(key), parse_expression());
    }
    return node;
  }

  /// How many operators may follow one value: each is a level of the tree.
  void count_link(int& links) const {
    if (++links > kMaxDepth) refuse("more than ", kMaxDepth, " operators after one value");
  }
  ExpressionPointer parse_postfix(ExpressionPointer value) {
    for (int links = 0;; count_link(links)) {
      if (skip_operator(".")) {
        auto node = make<Member>();
        node->attribute = token().kind == TokenKind::kName;
        if (node->attribute)
          node->index = literal(take().text);
        else if (token().kind == TokenKind::kInteger)
          node->index = literal(parse_integer());
        else
          refuse("wants a name after '.', found ", describe());
        node->object = std::move(value);
        value = std::move(node);
      } else if (skip_operator("[")) {
        value = parse_subscript(std::move(value));
      } else if (sees_operator("(")) {
        auto node = make<Call>();
        node->function = std::move(value);
        node->arguments = parse_arguments();
        value = std::move(node);
      } else {
        return value;
      }
    }
  }
  ExpressionPointer parse_subscript(ExpressionPointer object) {
    const auto part = [&]() -> ExpressionPointer {
      return sees_operator(":") || sees_operator("]") ? nullptr : parse_expression();
    };
    ExpressionPointer begin = part();
    if (!sees_operator(":")) {
      if (!begin) refuse("wants an index, found ", describe());
      auto node = make<Member>();
      node->object = std::move(object);
      node->index = std::move(begin);
      expect_operator("]");
      return node;
    }
    auto node = make<Slice>();
    node->object = std::move(object);
    node->begin = std::move(begin);
    take();
    node->end = part();
    if (skip_operator(":")) node->step = part();
    expect_operator("]");
    return node;
  }
  CallArguments parse_arguments() {
    CallArguments arguments;
    expect_operator("(");
    for (bool first = true; !skip_operator(")"); first = false) {
      if (!first) expect_operator(",");
      if (sees_operator(")")) continue;
      if (sees_operator("*") || sees_operator("**"))
        refuse("arguments with '", token().text, "' are not known to nibble's template engine");
      if (token().kind == TokenKind::kName && sees(TokenKind::kOperator, "=", 1)) {
        std::string name = take().text;
        take();
        arguments.named.emplace_back(std::move(name), parse_expression());
      } else {
        arguments.positional.push_back(parse_expression());
      }
    }
    return arguments;
  }

  ExpressionPointer parse_filters(ExpressionPointer value) {
    for (int links = 0;; count_link(links)) {
      if (skip_operator("|")) {
        auto node = make<Filter>();
        node->name = expect_name();
        node->value = std::move(value);
        if (sees_operator("(")) node->arguments = parse_arguments();
        value = std::move(node);
      } else if (skip_word("is")) {
        value = parse_test(std::move(value));
      } else if (sees_operator("(")) {
        value = parse_postfix(std::move(value));
      } else {
        return value;
      }
    }
  }
  ExpressionPointer parse_test(ExpressionPointer value) {
    auto node = make<Test>();
    node->negated = skip_word("not");
    node->name = expect_name();
    node->value = std::move(value);
    if (sees_operator("("))
      node->arguments = parse_arguments();
    else if (begins_argument())
      node->arguments.positional.push_back(parse_postfix(parse_primary()));
    return node;
  }
  /// Whether what follows a test's name is its argument ("is divisibleby 3").
  bool begins_argument() const {
    if (token().kind == TokenKind::kName)
      return !sees_word("else") && !sees_word("or") && !sees_word("and") && !sees_word("is") &&
             !sees_word("if") && !sees_word("not") && !sees_word("in");
    return token().kind == TokenKind::kInteger || token().kind == TokenKind::kFloat ||
           token().kind == TokenKind::kString || sees_operator("[") || sees_operator("{");
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

Statements parse(std::string_view source) { return Parser(tokenize(source)).run(); }

}  // namespace nibble::jinja
