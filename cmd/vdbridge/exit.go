package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"vdbridge/bridge"
)

// Exit codes. docs/cli.md lists them; they do not change.
const (
	ExitOK          = 0
	ExitFailure     = 1  // none of the others
	ExitUsage       = 2  // wrong arguments; nothing was tried
	ExitAuth        = 3  // the server does not accept user or password
	ExitNotFound    = 4  // no such share, directory, file
	ExitUnsupported = 5  // the server or vdbridge cannot do it
	ExitCorrupt     = 6  // damaged, or no VHDX
	ExitIO          = 7  // reading or writing failed
	ExitConflict    = 8  // reservation conflict
	ExitConnection  = 9  // server not reached, or lost
	ExitBusy        = 10 // in use by somebody else
	ExitPermission  = 11 // not allowed
	ExitReadOnly    = 12 // a write to something read-only
	ExitNoSpace     = 13 // the disk below is full
	ExitExists      = 14 // there already
	ExitInterrupted = 130
)

// exitCodes are for the manual page.
var exitCodes = []struct {
	code int
	text string
}{
	{ExitOK, "done"},
	{ExitFailure, "none of the others"},
	{ExitUsage, "wrong arguments; nothing was tried"},
	{ExitAuth, "the server does not accept user or password"},
	{ExitNotFound, "no such share, directory, file"},
	{ExitUnsupported, "the server or vdbridge cannot do it"},
	{ExitCorrupt, "damaged, or no VHDX"},
	{ExitIO, "reading or writing failed"},
	{ExitConflict, "reservation conflict"},
	{ExitConnection, "server not reached, or lost"},
	{ExitBusy, "in use by somebody else"},
	{ExitPermission, "not allowed"},
	{ExitReadOnly, "a write to something read-only"},
	{ExitNoSpace, "the disk below is full"},
	{ExitExists, "there already"},
	{ExitInterrupted, "a signal, before the work was done"},
}

var exitOfClass = map[bridge.Class]int{
	bridge.ClassUsage:       ExitUsage,
	bridge.ClassAuth:        ExitAuth,
	bridge.ClassNotFound:    ExitNotFound,
	bridge.ClassUnsupported: ExitUnsupported,
	bridge.ClassCorrupt:     ExitCorrupt,
	bridge.ClassIO:          ExitIO,
	bridge.ClassConflict:    ExitConflict,
	bridge.ClassConnection:  ExitConnection,
	bridge.ClassBusy:        ExitBusy,
	bridge.ClassPermission:  ExitPermission,
	bridge.ClassReadOnly:    ExitReadOnly,
	bridge.ClassNoSpace:     ExitNoSpace,
	bridge.ClassExists:      ExitExists,
	bridge.ClassInterrupted: ExitInterrupted,
}

// errReported is an error whose text the user has already seen.
type errReported struct{ error }

func (e errReported) Unwrap() error { return e.error }

// exitCode finds the exit code of an error.
func exitCode(err error) int {
	if err == nil {
		return ExitOK
	}
	var ec cli.ExitCoder
	if errors.As(err, &ec) {
		return ec.ExitCode()
	}
	if c, ok := exitOfClass[bridge.Classify(err)]; ok {
		return c
	}
	return ExitFailure
}

// complain writes an error as one sentence and returns the exit code.
func complain(w io.Writer, err error) int {
	var said errReported
	switch {
	case err == nil, errors.As(err, &said):
	case bridge.Classify(err) == bridge.ClassInterrupted:
		fmt.Fprintln(w, "vdbridge: interrupted")
	default:
		fmt.Fprintf(w, "vdbridge: %s\n", oneLine(err.Error()))
	}
	return exitCode(err)
}

// oneLine joins the lines that errors.Join makes.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' }), "; ")
}

// usage makes an error that ends the program with ExitUsage.
func usage(format string, args ...any) error { return bridge.Usagef(format, args...) }
