#!/usr/bin/env bash
# gofmt, go vet, staticcheck (a pinned version), and the shell scripts. Prints only what is wrong.
set -euo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-go}
STATICCHECK=honnef.co/go/tools/cmd/staticcheck@v0.8.2
failed=0

unformatted=$(gofmt -l .)
if [ -n "$unformatted" ]; then
	printf 'lint: gofmt would change:\n%s\n' "$unformatted"
	failed=1
fi

# The main module, and each module of its own below test/ (they keep foreign libraries out of go.mod).
for mod in $(git ls-files --cached --others --exclude-standard 'go.mod' '*/go.mod'); do
	(
		cd "$(dirname "$mod")"
		$GO vet ./... || exit 1
		$GO run $STATICCHECK ./... || exit 1
	) || {
		echo "lint: go vet or staticcheck failed in $(dirname "$mod")"
		failed=1
	}
done

mapfile -t scripts < <(git ls-files --cached --others --exclude-standard '*.sh' .ci/run)
for s in "${scripts[@]}"; do
	bash -n "$s" || failed=1
done
if command -v shellcheck >/dev/null; then
	shellcheck "${scripts[@]}" || failed=1
fi

exit $failed
