// Package wirecheck holds what vdbridge says on the wire against Wireshark's dissectors, which were written by others. Dissect turns a capture
// of --pcap into messages; the tests make captures of whole sessions and check the order of the messages, their fields, their
// signatures, and that nothing in them is malformed.
package wirecheck
