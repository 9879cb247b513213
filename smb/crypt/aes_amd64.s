//go:build !purego

#include "textflag.h"

// The round keys lie one after the other, 16 bytes each, nr+1 of them. All instructions that read them from memory have the VEX form, which
// does not ask for alignment.

// EXPAND makes the next round key from X0 (the one that is keylen bytes before) and X1 (AESKEYGENASSIST of the last one).
#define EXPAND(shuffle) \
	PSHUFD $shuffle, X1, X1; \
	MOVO X0, X2;  \
	PSLLO $4, X2; \
	PXOR X2, X0;  \
	PSLLO $4, X2; \
	PXOR X2, X0;  \
	PSLLO $4, X2; \
	PXOR X2, X0;  \
	PXOR X1, X0

#define NEXT128(rcon, off) \
	AESKEYGENASSIST $rcon, X0, X1; \
	EXPAND(0xFF);                  \
	MOVOU X0, off(DI)

// X0 and X3 take turns as the first and second half of a key of 256 bits.
#define NEXT256A(rcon, off) \
	AESKEYGENASSIST $rcon, X3, X1; \
	EXPAND(0xFF);                  \
	MOVOU X0, off(DI)

#define NEXT256B(off) \
	AESKEYGENASSIST $0, X0, X1; \
	MOVO X0, X4;                \
	MOVO X3, X0;                \
	EXPAND(0xAA);               \
	MOVO X0, X3;                \
	MOVO X4, X0;                \
	MOVOU X3, off(DI)

// func expandKey(rounds int, key, xk *byte)
TEXT ·expandKey(SB), NOSPLIT, $0-24
	MOVQ rounds+0(FP), CX
	MOVQ key+8(FP), SI
	MOVQ xk+16(FP), DI
	MOVOU (SI), X0
	MOVOU X0, (DI)
	CMPQ CX, $10
	JNE  expand256
	NEXT128(0x01, 16)
	NEXT128(0x02, 32)
	NEXT128(0x04, 48)
	NEXT128(0x08, 64)
	NEXT128(0x10, 80)
	NEXT128(0x20, 96)
	NEXT128(0x40, 112)
	NEXT128(0x80, 128)
	NEXT128(0x1B, 144)
	NEXT128(0x36, 160)
	RET

expand256:
	MOVOU 16(SI), X3
	MOVOU X3, 16(DI)
	NEXT256A(0x01, 32)
	NEXT256B(48)
	NEXT256A(0x02, 64)
	NEXT256B(80)
	NEXT256A(0x04, 96)
	NEXT256B(112)
	NEXT256A(0x08, 128)
	NEXT256B(144)
	NEXT256A(0x10, 160)
	NEXT256B(176)
	NEXT256A(0x20, 192)
	NEXT256B(208)
	NEXT256A(0x40, 224)
	RET

// func cbcMACBlocks(rounds int, xk, mac, p *byte, n int)
//
// X0 is the chain. Only it is waited for: everything else is ready before.
TEXT ·cbcMACBlocks(SB), NOSPLIT, $0-40
	MOVQ rounds+0(FP), CX
	MOVQ xk+8(FP), AX
	MOVQ mac+16(FP), DI
	MOVQ p+24(FP), SI
	MOVQ n+32(FP), BX
	VMOVDQU (DI), X0
	VMOVDQU (AX), X4

macLoop:
	VPXOR (SI), X4, X3
	VPXOR X3, X0, X0
	VAESENC 16(AX), X0, X0
	VAESENC 32(AX), X0, X0
	VAESENC 48(AX), X0, X0
	VAESENC 64(AX), X0, X0
	VAESENC 80(AX), X0, X0
	VAESENC 96(AX), X0, X0
	VAESENC 112(AX), X0, X0
	VAESENC 128(AX), X0, X0
	VAESENC 144(AX), X0, X0
	CMPQ CX, $10
	JNE  mac256
	VAESENCLAST 160(AX), X0, X0
	ADDQ $16, SI
	DECQ BX
	JNZ  macLoop
	VMOVDQU X0, (DI)
	RET

mac256:
	VAESENC 160(AX), X0, X0
	VAESENC 176(AX), X0, X0
	VAESENC 192(AX), X0, X0
	VAESENC 208(AX), X0, X0
	VAESENCLAST 224(AX), X0, X0
	ADDQ $16, SI
	DECQ BX
	JNZ  macLoop
	VMOVDQU X0, (DI)
	RET

#define ROUND2(off) \
	VAESENC off(AX), X0, X0; \
	VAESENC off(AX), X2, X2

// func ccmBlocks(rounds int, xk, mac, counter, p *byte, n int, open uint32)
//
// X0 is the chain of the MAC, X2 the key stream: the one for the next block is made while the MAC takes in the plaintext of this one, in the time that
// the chain has to wait for itself anyway. X5 is all ones to open, zero to seal: the plaintext is what is read, or what is
// written.
TEXT ·ccmBlocks(SB), NOSPLIT, $0-52
	MOVQ rounds+0(FP), CX
	MOVQ xk+8(FP), AX
	MOVQ mac+16(FP), DI
	MOVQ counter+24(FP), DX
	MOVQ p+32(FP), SI
	MOVQ n+40(FP), BX
	MOVL open+48(FP), R9
	VMOVD R9, X5
	VPSHUFD $0, X5, X5
	VMOVDQU (DI), X0
	VMOVDQU (DX), X1
	VMOVDQU (AX), X4
	MOVL 12(DX), R8
	BSWAPL R8

	// The key stream of the first block.
	VPXOR X4, X1, X2
	VAESENC 16(AX), X2, X2
	VAESENC 32(AX), X2, X2
	VAESENC 48(AX), X2, X2
	VAESENC 64(AX), X2, X2
	VAESENC 80(AX), X2, X2
	VAESENC 96(AX), X2, X2
	VAESENC 112(AX), X2, X2
	VAESENC 128(AX), X2, X2
	VAESENC 144(AX), X2, X2
	CMPQ CX, $10
	JNE  first256
	VAESENCLAST 160(AX), X2, X2
	JMP  ccmLoop

first256:
	VAESENC 160(AX), X2, X2
	VAESENC 176(AX), X2, X2
	VAESENC 192(AX), X2, X2
	VAESENC 208(AX), X2, X2
	VAESENCLAST 224(AX), X2, X2

ccmLoop:
	VMOVDQU (SI), X3
	VPXOR X2, X3, X6
	VMOVDQU X6, (SI)
	VPAND X5, X2, X6
	VPXOR X6, X3, X3
	VPXOR X4, X3, X3
	VPXOR X3, X0, X0
	INCL R8
	MOVL R8, R9
	BSWAPL R9
	VPINSRD $3, R9, X1, X1
	VPXOR X4, X1, X2
	ROUND2(16)
	ROUND2(32)
	ROUND2(48)
	ROUND2(64)
	ROUND2(80)
	ROUND2(96)
	ROUND2(112)
	ROUND2(128)
	ROUND2(144)
	CMPQ CX, $10
	JNE  ccm256
	VAESENCLAST 160(AX), X0, X0
	VAESENCLAST 160(AX), X2, X2
	ADDQ $16, SI
	DECQ BX
	JNZ  ccmLoop
	VMOVDQU X0, (DI)
	VMOVDQU X1, (DX)
	RET

ccm256:
	ROUND2(160)
	ROUND2(176)
	ROUND2(192)
	ROUND2(208)
	VAESENCLAST 224(AX), X0, X0
	VAESENCLAST 224(AX), X2, X2
	ADDQ $16, SI
	DECQ BX
	JNZ  ccmLoop
	VMOVDQU X0, (DI)
	VMOVDQU X1, (DX)
	RET
