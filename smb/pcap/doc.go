// Package pcap writes what an SMB connection carried to a capture file that Wireshark and tshark open.
//
// The frames are made up: the messages are real, the TCP/IP around them is drawn from the addresses of the connection, with right
// sequence numbers and checksums. The server's port is always written as 445, wherever it listened,
// because Wireshark knows SMB by that port.
//
// Messages of sealed sessions stand in the capture as they were sent, encrypted. Their session keys are written to a second file beside it, one line a session,
// each line a value for Wireshark's table of SMB2 session keys:
//
//	tshark -r FILE $(sed 's/^/-o uat:smb2_seskey_list:/' FILE.keys)
//
// Whoever has both files can read everything that the session carried, so both are created readable by their owner only.
package pcap
