package load

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		v    []float64
		want float64
	}{
		{[]float64{3}, 3},
		{[]float64{3, 1}, 2},
		{[]float64{9, 1, 5}, 5},
	} {
		if got := Median(tc.v); got != tc.want {
			t.Errorf("Median(%v) is %v, want %v", tc.v, got, tc.want)
		}
	}
}

func TestRoundsInterleave(t *testing.T) {
	var order strings.Builder
	subject := func(name string, v float64) Subject {
		return Subject{name, func() (float64, error) { order.WriteString(name); return v, nil }}
	}
	m, err := Rounds(3, []Subject{subject("a", 1), subject("b", 2)})
	if err != nil || fmt.Sprint(m) != "[1 2]" {
		t.Errorf("Rounds: %v, %v", m, err)
	}
	if order.String() != "abbaab" {
		t.Errorf("the order was %s", &order)
	}
}

func TestProcess(t *testing.T) {
	if n, err := PeakMemory(os.Getpid()); err != nil || n < 1<<20 {
		t.Errorf("PeakMemory: %d, %v", n, err)
	}
}
