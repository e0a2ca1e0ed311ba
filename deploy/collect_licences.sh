#!/usr/bin/env bash
# Copies the copyright file of every Debian package that goes into the given programs: those whose
# headers were compiled in, as the build recorded them, and those whose shared libraries are loaded.
#
#   deploy/collect_licences.sh OUT BUILD PROGRAM...
#
# OUT/PACKAGE/copyright is what Debian ships; OUT/packages lists names and versions. Texts that they
# refer to are in /usr/share/common-licenses of every Debian.
set -euo pipefail
[[ $# -ge 3 ]] || { sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
out=$1 build=$2
shift 2

files() {
  ninja -C "$build" -t deps | sed -n 's|^ *\(/usr/.*\)|\1|p'
  ldd "$@" | sed -n 's|.*=> \(/[^ ]*\) .*|\1|p'
}
# Debian lists some files of /usr/lib under /lib.
both_names() { sort -u | sed 's|^/usr/lib/\(.*\)|&\n/lib/\1|; s|^/lib/\(.*\)|&\n/usr/lib/\1|'; }

# xargs returns 123 because dpkg-query knows only one of them.
owners() { xargs dpkg-query --search 2>/dev/null || [[ $? -eq 123 ]]; }

mapfile -t packages < <(files "$@" | xargs realpath -- | both_names | owners |
  sed 's/: .*//; s/:[^,]*//g; s/, /\n/g' | sort -u)
[[ ${#packages[@]} -gt 0 ]] || { echo "$0: nothing found: is $build a Ninja build?" >&2; exit 1; }

mkdir -p "$out"
for package in "${packages[@]}"; do
  install -D --mode=644 "/usr/share/doc/$package/copyright" "$out/$package/copyright"
done
dpkg-query --show --showformat='${Package} ${Version}\n' "${packages[@]}" | sort -u >"$out/packages"
echo "licences: of ${#packages[@]} packages in $out"
