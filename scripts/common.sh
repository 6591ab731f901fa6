# What setup, test and demo share: where things lie, and how a step is said. Sourced, not run.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
export PATH=$venv/bin:$PATH

say() { printf '\033[1m%s\033[0m\n' "$*"; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# changed NAME FILE...: true when the files differ from those of the last `done_with NAME FILE...`.
changed() { ! sha256sum "${@:2}" | cmp -s - "$venv/.$1.sha256"; }
done_with() { sha256sum "${@:2}" > "$venv/.$1.sha256"; }

# The Debian packages of a list that are not installed.
missing_packages() {
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || echo "$package"
  done
}

# Installs Debian packages as root or through sudo; otherwise prints the line to run and stops.
install_packages() {
  local missing
  missing=$(missing_packages "$@" | tr '\n' ' ')
  [ -z "$missing" ] && return
  local as_root=
  if [ "$(id -u)" != 0 ]; then
    if ! sudo -n true 2>/dev/null; then
      die "packages are missing and I am not root. Run this line, then me again:
  sudo apt-get update && sudo apt-get install -y --no-install-recommends $missing"
    fi
    as_root=sudo
  fi
  say "Installing Debian packages: $missing"
  $as_root apt-get update -qq || say "apt-get update failed; trying with the package lists there are"
  DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing > /dev/null \
    || die "apt-get could not install: $missing"
}
