// Package rsvdcases restates Microsoft's test cases of MS-RSVD under their own names, and adds the negative cases that its suite lacks. They
// run our client against our server over loopback. docs/conformance/rsvd.md has the table of all 29.
package rsvdcases
