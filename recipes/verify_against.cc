// nibble verify --against: a checkpoint's W^ are made by LibTorch.
#include "export/export.h"
#include "recipes/recipe.h"
#include "recipes/run_folder.h"
#include "recipes/verify.h"
#include "training/checkpoint.h"

namespace nibble {

int run_verify_against(int argc, char** argv) {
  const VerifyArguments arguments = *verify_arguments(argc, argv);
  const Checkpoint checkpoint =
      load_checkpoint(run_checkpoint_path(*arguments.against, arguments.checkpoint));
  const TrainedWeights trained = trained_weights(checkpoint);
  return verify_and_print(arguments, &trained);
}

}  // namespace nibble
