package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
)

const run = `{"Action":"start","Package":"a"}
{"Action":"run","Package":"a","Test":"TestGood"}
{"Action":"output","Package":"a","Test":"TestGood","Output":"=== RUN   TestGood\n"}
{"Action":"pass","Package":"a","Test":"TestGood","Elapsed":0.5}
{"Action":"output","Package":"a","Test":"TestTool","Output":"    x_test.go:3: qemu-img is missing\n"}
{"Action":"skip","Package":"a","Test":"TestTool","Elapsed":0}
{"Action":"pass","Package":"a","Elapsed":0.7}
`

const bad = `{"Action":"output","Package":"b","Test":"TestBad","Output":"    y_test.go:9: got 1, want 2\n"}
{"Action":"fail","Package":"b","Test":"TestBad","Elapsed":1}
{"Action":"fail","Package":"b","Elapsed":1}
{"ImportPath":"c","Action":"build-output","Output":"c.go:1: no\n"}
{"ImportPath":"c","Action":"build-fail"}
{"Action":"fail","Package":"c","Elapsed":0,"FailedBuild":"c"}
`

func TestFollowAndSummary(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		ok       bool
		want     []string
	}{
		{"good", run, true, []string{"ok  \ta\t0.7s\t2 tests, 1 skipped", "a TestTool: x_test.go:3: qemu-img is missing", "1 passed, 0 failed, 1 skipped"}},
		{"bad", run + bad, false, []string{"FAIL\tb", "FAIL\tc [build failed]", "1 passed, 1 failed, 1 skipped", "  b TestBad\n", "  c\n"}},
		{"nothing", "", false, []string{"0 passed"}},
	} {
		file := filepath.Join(t.TempDir(), "r")
		var progress, sum bytes.Buffer
		err1 := follow(strings.NewReader(tc.in), &progress, file)
		err2 := summarise(&sum, []string{file})
		if (err1 == nil) != (tc.ok || tc.in == "") || (err2 == nil) != tc.ok {
			t.Errorf("%s: verdicts %v, %v; want ok %v", tc.name, err1, err2, tc.ok)
		}
		for _, w := range tc.want {
			if !strings.Contains(sum.String(), w) {
				t.Errorf("%s: no %q in the summary:\n%s", tc.name, w, &sum)
			}
		}
		if !tc.ok && tc.in != "" && (!strings.Contains(progress.String(), "got 1, want 2") || !strings.Contains(progress.String(), "c.go:1: no")) {
			t.Errorf("%s: the output of what failed is missing:\n%s", tc.name, &progress)
		}
	}
}
