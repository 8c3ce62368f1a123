#!/bin/sh
# Installs into a temporary folder and uses what is there: libbalsa.so, libbalsa.a and balsa.so.
#
#   CC=cc sh tests/install/check.sh make-command …

folder=$(mktemp -d "${TMPDIR:-/tmp}/balsa-install.XXXXXX") || exit 1
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM HUP
passed=0
failed=0
check() { # what, command …
  what=$1
  shift
  if "$@" >"$folder/output" 2>&1; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "FAILED: $what"
    cat "$folder/output"
  fi
}

CC=${CC:-cc}
prefix=$folder/prefix
check 'make install' "$@" install PREFIX="$prefix"
check 'balsa.pc has no place left to fill in' sh -c "! grep -n '@' '$prefix/lib/pkgconfig/balsa.pc'"

# What balsa.pc says, without pkg-config, which need not be there.
value() { sed -n "s/^$1: *//p" "$prefix/lib/pkgconfig/balsa.pc" | sed "s|\${libdir}|$prefix/lib|; s|\${includedir}|$prefix/include|"; }
check 'links with libbalsa.so' $CC $(value Cflags) -o "$folder/shared" tests/install/linked.c $(value Libs) -lsqlite3
check 'runs with libbalsa.so' env LD_LIBRARY_PATH="$prefix/lib" "$folder/shared" "$folder/shared.db"
check 'links with libbalsa.a' $CC $(value Cflags) -o "$folder/static" tests/install/linked.c "$prefix/lib/libbalsa.a" \
  -luv -llz4 -lxxhash -lsqlite3 $(value Libs.private)
check 'runs with libbalsa.a' "$folder/static" "$folder/static.db"
check 'plain sqlite3 reads what it wrote' sh -c "test \"\$(sqlite3 '$folder/static.db' 'SELECT count(*) FROM t')\" = 3"
check 'the extension loads from where it was installed' sh -c \
  "test \"\$(sqlite3 -cmd '.load $prefix/lib/balsa' -cmd '.open file:$folder/loaded.db?vfs=balsa' :memory: \
     'CREATE TABLE t(x); INSERT INTO t VALUES(7); SELECT x FROM t')\" = 7"
check 'make uninstall leaves nothing' sh -c "$* uninstall PREFIX='$prefix' && test -z \"\$(find '$prefix' -type f -o -type l)\""
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
