//go:build !purego

package crypt

import "golang.org/x/sys/cpu"

// canFuse says whether the processor has what aes_amd64.s uses.
var canFuse = cpu.X86.HasAES && cpu.X86.HasAVX && cpu.X86.HasSSE41

//go:noescape
func expandKey(rounds int, key, xk *byte)

//go:noescape
func cbcMACBlocks(rounds int, xk, mac, p *byte, n int)

//go:noescape
func ccmBlocks(rounds int, xk, mac, counter, p *byte, n int, open uint32)
